"""The config of stage 1: a YAML file with a data set, a provider and up to five tasks.

Later files win over earlier ones, key by key, then ``--set a.b=value``. Keys are named by their
environment variable and never written down.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmrec_pl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

PRESETS: dict[str, dict[str, Any]] = {
    "heuristic": {"label": "heuristic", "chat_model": "counts", "embed_model": "hashing-256"},
    "openai": {
        "label": "openai",
        "base_urls": ["https://api.openai.com/v1"],
        "key_env": "OPENAI_API_KEY",
        "chat_model": "gpt-4o-mini",
        "embed_model": "text-embedding-3-small",
    },
    "azure": {
        "label": "azure",
        "key_env": "AZURE_OPENAI_API_KEY",
        "api_version": "2024-10-21",
        "chat_model": "gpt-4o-mini",
        "embed_model": "text-embedding-3-small",
    },
    "local": {
        "label": "local",
        "base_urls": ["http://127.0.0.1:8089/v1"],
        "key_env": None,
        "chat_model": "local",
        "embed_model": "minilm",
        "free": True,
        "timeout_s": 900.0,  # on a processor one answer takes seconds, and others wait before it
        "read_timeout_s": 900.0,
    },
}
"""What a provider's name stands for; every key can be given in the config too."""

IN_PROCESS_EMBEDDERS = ("minilm", "hashing-256")
"""Embedding models that need no server: MiniLM weights from a package, hashed n-grams."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Domain(_Strict):
    """The words of the trade, put into prompts and used as names of fields."""

    item: str = "item"
    items: str = "items"
    creator: str = "creator"
    creators: str = "creators"
    category: str = "category"
    categories: str = "categories"
    consumed: str = "liked"


class Provider(_Strict):
    """Who answers, how fast it may be asked, and what it costs.

    Attributes:
        name: preset: "heuristic" (no LLM), "openai", "azure", "local".
        label: takes part in request keys; tells equal model names on two servers apart.
        base_urls: OpenAI-compatible endpoints, used in turn.
        key_env: environment variable that holds the key; None for a server without.
        chat_model: model of tasks that name none.
        embed_model: the same for embeddings; "minilm" and "hashing-256" run in this process.
        free: no price is needed, nothing is charged.
        api_version: Azure only.
        concurrency: most calls in flight.
        rpm: requests a minute; None for no limit of our own.
        tpm: tokens a minute.
        structured: how the answer's form is asked for; "auto" asks the server once.
        timeout_s: whole time allowed for one call.
        read_timeout_s: time allowed between two pieces of a reply.
        max_wait_s: longest time to stay rate-limited before the run stops.
        insecure_http: allow plain http to hosts that are not private.
        prices: file with further prices, `prices.toml` in form.
    """

    name: Literal["heuristic", "openai", "azure", "local"] = "heuristic"
    label: str = ""
    base_urls: list[str] = []
    key_env: str | None = None
    chat_model: str = ""
    embed_model: str = ""
    free: bool = False
    api_version: str | None = None
    concurrency: int = Field(default=64, ge=1, le=4096)
    rpm: float | None = Field(default=None, gt=0)
    tpm: float | None = Field(default=None, gt=0)
    structured: Literal["auto", "json_schema", "json_object", "none"] = "auto"
    timeout_s: float = Field(default=180.0, gt=0)
    read_timeout_s: float = Field(default=60.0, gt=0)
    max_wait_s: float = Field(default=21_600.0, gt=0)
    insecure_http: bool = False
    prices: Path | None = None


class _ChatTask(_Strict):
    model: str = ""
    prompt_set: Literal["llmrec-2024", "strict-1"] = "strict-1"
    temperature: float = Field(default=0.6, ge=0, le=2)
    top_p: float = Field(default=0.1, ge=0, le=1)
    max_tokens: int = Field(default=64, ge=1)
    max_tokens_ceiling: int = Field(default=1024, ge=1)
    seed: int | None = None


class _TitledTask(_ChatTask):
    mask_titles: bool = False


class PairsTask(_TitledTask):
    """Most and least liked of a candidate pool; `pool` is candidates.parquet or "random"."""

    pool: str = ""
    n_candidates: int = Field(default=10, ge=2, le=100)
    history: int = Field(default=20, ge=1)
    draws: int = Field(default=1, ge=1)
    shuffle_seed: int = 0


class ProfilesTask(_TitledTask):
    """Age, gender, liked and disliked categories, liked creators, country, language."""

    max_tokens: int = Field(default=256, ge=1)
    history: int = Field(default=20, ge=1)


class AttributesTask(_TitledTask):
    """Facts about items, `items_per_call` at a time."""

    max_tokens: int = Field(default=96, ge=1)
    fields: Annotated[list[str], Field(min_length=1)] = ["creator", "country", "language"]
    items_per_call: int = Field(default=1, ge=1, le=50)


class EmbedTask(_Strict):
    """A vector for each text that profiles and attributes gave."""

    model: str = ""
    dimensions: int | None = Field(default=None, ge=1)
    texts_per_call: int = Field(default=256, ge=1, le=2048)


class MemorisationTask(_ChatTask):
    """Does the model know the data set by heart? Trains nothing.

    Attributes:
        data_name: what the world calls the data set; its own name if empty.
        items: how many are asked for by their ids, and by the first halves of their titles.
        users: whose histories are to be continued.
        shown: first train interactions of a user that the prompt shows.
        asked: how many of the next ones are asked for.
    """

    prompt_set: Literal["strict-1"] = "strict-1"
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, ge=0, le=1)
    max_tokens: int = Field(default=256, ge=1)
    data_name: str = ""
    items: int = Field(default=200, ge=0)
    users: int = Field(default=200, ge=0)
    shown: int = Field(default=10, ge=1)
    asked: int = Field(default=10, ge=1, le=50)


class Tasks(_Strict):
    """The tasks to run; one that is null is left out."""

    pairs: PairsTask | None = PairsTask()
    profiles: ProfilesTask | None = ProfilesTask()
    attributes: AttributesTask | None = AttributesTask()
    embed: EmbedTask | None = EmbedTask()
    memorisation: MemorisationTask | None = None


class AugmentConfig(_Strict):
    """Everything `python -m augment run` needs.

    Attributes:
        dataset: canonical data set folder.
        store: folder of the journal; what was paid for lies there.
        out: folder of the export.
        provider: a preset's name or a mapping.
        domain: words put into prompts.
        tasks: what to ask.
        max_usd: budget of the store in USD; None needs `--no-cap` unless all is free.
    """

    dataset: Path
    store: Path
    out: Path
    provider: Provider = Provider()
    domain: Domain = Domain()
    tasks: Tasks = Tasks()
    max_usd: float | None = Field(default=None, ge=0)


def load_config(files: Iterable[Path | str], overrides: Iterable[str] = ()) -> AugmentConfig:
    """Read config files, the later over the earlier, then `a.b=value` overrides.

    Raises:
        ConfigError: a file is missing or no YAML mapping, an override has no `=`, a key is
            unknown, or a value is out of range.
    """
    merged: dict[str, Any] = {}
    for name in files:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"no config file at {str(path)!r}.")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            where = getattr(error, "problem_mark", None)
            line = "" if where is None else f" in line {where.line + 1}"
            raise ConfigError(
                f"{str(path)!r} is not valid YAML{line}: {getattr(error, 'problem', error)}."
            ) from error
        if not isinstance(content, dict):
            raise ConfigError(f"{str(path)!r} must hold a mapping, got {_brief(content)}.")
        _merge(merged, _expanded(content))
    for text in overrides:
        dotted, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"`--set {text}` has no `=`; write `--set tasks.pairs.draws=3`.")
        _merge(merged, _expanded(_nested(dotted.split("."), yaml.safe_load(value))))
    return build_config(merged)


def build_config(values: dict[str, Any]) -> AugmentConfig:
    """Make a config of plain values, presets filled in.

    Raises:
        ConfigError: a key is unknown or a value is out of range.
    """
    values = _expanded(values)
    provider = values.get("provider") or {}
    name = provider.get("name", "heuristic")
    if name not in PRESETS:
        raise ConfigError(f"unknown provider {name!r}; known are {', '.join(PRESETS)}.")
    given = {k: v for k, v in provider.items() if v is not None or k == "key_env"}
    values = {**values, "provider": {**PRESETS[name], **given, "name": name}}
    try:
        return AugmentConfig.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            _problem(e["loc"], e["type"], e["msg"], e["input"]) for e in error.errors()
        )
        raise ConfigError(f"the config cannot be used: {problems}.") from error


def _problem(place: tuple[int | str, ...], kind: str, text: str, value: object) -> str:
    """Return what is wrong with one key; a mapping of any size stays short."""
    key = f"`{'.'.join(map(str, place))}`"
    if kind == "missing":
        return f"{key} is missing"
    if kind != "extra_forbidden":
        return f"{key}: {text} (got {_brief(value)})"
    known = _keys_beside(place)
    near = get_close_matches(str(place[-1]), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"{key} is no key of the config ({hint})"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _keys_beside(place: tuple[int | str, ...]) -> list[str]:
    model: Any = AugmentConfig
    for name in place[:-1]:
        kind = model.model_fields[name].annotation
        model = next(iter(get_args(kind)), kind)  # of `PairsTask | None` the first
    return list(model.model_fields)


def _expanded(values: dict[str, Any]) -> dict[str, Any]:
    if isinstance(values.get("provider"), str):
        return {**values, "provider": {"name": values["provider"]}}
    return values


def _nested(path: list[str], value: object) -> dict[str, Any]:
    nested = value
    for name in reversed(path):
        nested = {name: nested}
    assert isinstance(nested, dict)  # a path has at least one name
    return nested


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value
