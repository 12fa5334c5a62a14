"""Runs the engine in this process against a server, and looks at the store afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

from augment.budget import read_ledger, recompute
from augment.errors import AugmentStop
from augment.judge import Policy
from augment.recover import recover
from augment.store import State, Store, open_readonly
from tests.augment.drive import plain_spec, plan_all, work

DEFAULTS = {
    "n": 20,
    "kind": "pairs",
    "concurrency": 8,
    "start": 8,
    "rpm": None,
    "cap": None,
    "priced": True,
    "timeout": 5.0,
    "read_timeout": 3.0,
    "max_wait": 30.0,
    "max_unknowns": 1,
    "max_tries": 5,
    "stop_after": None,
}


class Asked:
    """What a run left: reason to stop, POSTs, and the store's rows."""

    def __init__(self, folder, stop, server):
        self.stop, self.posts, self.server = stop, server.posts, server
        with contextlib.closing(open_readonly(folder)) as db:
            rows = db.execute("SELECT state, count(*) FROM request GROUP BY state")
            self.states = {State(state).name: n for state, n in rows}
            self.codes = dict(db.execute("SELECT last_code, count(*) FROM request GROUP BY 1"))
            self.verdicts = dict(db.execute("SELECT code, count(*) FROM verdict GROUP BY 1"))
            self.raws = db.execute("SELECT count(*) FROM attempt WHERE raw IS NOT NULL").fetchone()[
                0
            ]
            self.results = db.execute("SELECT request, value FROM result ORDER BY 1").fetchall()
            self.tries = [t for (t,) in db.execute("SELECT tries FROM request ORDER BY id")]
            self.unknown = db.execute("SELECT count(*) FROM attempt WHERE state = 3").fetchone()[0]
            self.anomalies = [k for (k,) in db.execute("SELECT kind FROM anomaly")]
            self.ledger, self.audit = read_ledger(db), recompute(db)

    def billed_pusd(self):
        """What the server charges, at the price of gpt-4o-mini or text-embedding-3-small."""
        prompt, completion = self.server.bill
        embeddings = any("embeddings" in post["path"] for post in self.posts)
        rates = (20_000, 0) if embeddings else (150_000, 600_000)
        return prompt * rates[0] + completion * rates[1]


def ask(folder, server, spec=None, **given):
    """Plan n requests, send them, close; returns what is there then."""
    args = SimpleNamespace(**{**DEFAULTS, **given, "url": [server.url]})
    spec, stop = spec or plain_spec(args.kind), None
    with Store(folder, create=True, spool_size=2**20) as store:
        recover(store, Policy(max_unknowns=args.max_unknowns), 0)
        spec_id = plan_all(store, spec, args.n)
        try:
            asyncio.run(work(store, spec, spec_id, args))
        except AugmentStop as reason:
            stop = reason
    asked = Asked(folder, stop, server)
    assert asked.ledger == asked.audit, "the ledger is the sum of the attempts"
    assert asked.ledger.spent_pusd + asked.ledger.reserved_pusd >= asked.billed_pusd()
    return asked
