-- Store of stage 1, version 1. Columns are only ever added; attempt.raw is never rewritten.
-- Times are milliseconds since 1970, money is pico-USD (1e-12 USD).
CREATE TABLE meta(k TEXT PRIMARY KEY, v TEXT NOT NULL) STRICT;

CREATE TABLE spec(
  id INTEGER PRIMARY KEY, sha BLOB NOT NULL UNIQUE, kind TEXT NOT NULL, json TEXT NOT NULL,
  planned INTEGER NOT NULL DEFAULT 0,      -- 1 once every wanted row is in
  created_at INTEGER NOT NULL) STRICT;

CREATE TABLE request(
  id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, spec INTEGER NOT NULL REFERENCES spec(id),
  state INTEGER NOT NULL DEFAULT 0,        -- see State
  tries INTEGER NOT NULL DEFAULT 0,        -- sends that count, over all process lives
  rejects INTEGER NOT NULL DEFAULT 0,      -- replies that failed validation
  unknowns INTEGER NOT NULL DEFAULT 0,     -- sends whose outcome nobody knows
  not_before INTEGER NOT NULL DEFAULT 0,   -- 1: sent after all others, see claim()
  draw INTEGER NOT NULL DEFAULT 0,
  parent INTEGER REFERENCES request(id), child INTEGER REFERENCES request(id),
  depth INTEGER NOT NULL DEFAULT 0,        -- follow-ups between the planned request and this
  body BLOB NOT NULL, context BLOB,        -- zlib of canonical JSON
  bound_in INTEGER NOT NULL, bound_out INTEGER NOT NULL,
  last_code TEXT) STRICT;
CREATE INDEX todo ON request(spec, id) WHERE state = 0;
CREATE INDEX settled ON request(state) WHERE state IN (1, 3, 5, 6);

CREATE TABLE wanted(
  spec INTEGER NOT NULL REFERENCES spec(id), entity INTEGER NOT NULL, field INTEGER NOT NULL,
  request INTEGER REFERENCES request(id),  -- NULL where skipped
  context BLOB, skip TEXT, PRIMARY KEY(spec, entity, field)) STRICT, WITHOUT ROWID;
CREATE INDEX wanted_request ON wanted(request) WHERE request IS NOT NULL;

CREATE TABLE run(
  id INTEGER PRIMARY KEY, host TEXT, pid INTEGER, boot TEXT, version TEXT, config TEXT,
  t0 INTEGER NOT NULL, t1 INTEGER, exit INTEGER) STRICT;

CREATE TABLE attempt(
  id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES run(id), lane TEXT NOT NULL,
  state INTEGER NOT NULL,                  -- see AttemptState
  t_start INTEGER NOT NULL, t_end INTEGER, elapsed_ms INTEGER, http INTEGER, outcome TEXT,
  detail TEXT, finish TEXT, server_request_id TEXT, model_returned TEXT, fingerprint TEXT,
  raw BLOB,                                -- zlib of the exact body; NULL for embeddings
  tok_in INTEGER, tok_out INTEGER, tok_cached INTEGER, tok_reason INTEGER, usage_src TEXT,
  price INTEGER REFERENCES price(id), cost_pusd INTEGER, reserved_pusd INTEGER NOT NULL) STRICT;
CREATE INDEX open_attempt ON attempt(state) WHERE state IN (0, 3);
CREATE TABLE call_item(
  attempt INTEGER NOT NULL REFERENCES attempt(id), pos INTEGER NOT NULL,
  request INTEGER NOT NULL REFERENCES request(id), PRIMARY KEY(attempt, pos)) STRICT, WITHOUT ROWID;
CREATE INDEX item_request ON call_item(request);

CREATE TABLE result(
  request INTEGER PRIMARY KEY REFERENCES request(id), attempt INTEGER NOT NULL,
  validator TEXT NOT NULL, value TEXT NOT NULL) STRICT;
CREATE TABLE verdict(
  attempt INTEGER NOT NULL, request INTEGER NOT NULL, validator TEXT NOT NULL, code TEXT NOT NULL,
  detail TEXT NOT NULL, PRIMARY KEY(attempt, request, validator)) STRICT, WITHOUT ROWID;

CREATE TABLE ledger(
  one INTEGER PRIMARY KEY CHECK(one = 1), cap_pusd INTEGER, spent_pusd INTEGER NOT NULL,
  reserved_pusd INTEGER NOT NULL) STRICT;
INSERT INTO ledger(one, spent_pusd, reserved_pusd) VALUES (1, 0, 0);
CREATE TABLE price(
  id INTEGER PRIMARY KEY, model TEXT NOT NULL, tier TEXT NOT NULL, input INTEGER NOT NULL,
  cached INTEGER NOT NULL, output INTEGER NOT NULL, valid_from TEXT NOT NULL, source TEXT NOT NULL,
  UNIQUE(model, tier, input, cached, output, valid_from)) STRICT;

CREATE TABLE batch_part(
  uuid TEXT PRIMARY KEY, state TEXT NOT NULL, spec INTEGER NOT NULL REFERENCES spec(id),
  sha BLOB NOT NULL, n INTEGER NOT NULL, bytes INTEGER NOT NULL, endpoint TEXT NOT NULL,
  file_id TEXT, remote_id TEXT, remote_status TEXT, out_file TEXT, err_file TEXT,
  out_sha BLOB, err_sha BLOB, reserved_pusd INTEGER NOT NULL DEFAULT 0, detail TEXT,
  t INTEGER NOT NULL) STRICT;
CREATE TABLE batch_line(
  part TEXT NOT NULL REFERENCES batch_part(uuid), custom_id TEXT NOT NULL,
  attempt INTEGER NOT NULL REFERENCES attempt(id), PRIMARY KEY(part, custom_id)) STRICT, WITHOUT ROWID;

CREATE TABLE anomaly(id INTEGER PRIMARY KEY, t INTEGER NOT NULL, kind TEXT NOT NULL,
  detail TEXT NOT NULL) STRICT;
