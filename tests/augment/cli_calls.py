"""Commands as a person types them, in this process."""

from augment.cli import main

KEY = "sk-canary-5f0c9e7d1b2a4"


def call(*arguments):
    """Run a command; returns its status."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as leave:
        return leave.code
    return 0


def ask(server, *more):
    """Run against a server, as with OpenAI."""
    form = "provider.structured=json_schema"
    own = ["--base-url", server.url, "--set", form, "--embed-model", "text-embedding-3-small"]
    return call("run", "--config", "c.yaml", "--provider", "openai", "--model", "gpt-4o-mini",
                *own, *more)  # fmt: skip


def everything_written(folder, capsys):
    said = capsys.readouterr()
    files = b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())
    return (said.out + said.err).encode() + files
