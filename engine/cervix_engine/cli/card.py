"""`cervix-card`: what a bundle's model is, what it learnt from, how well it does, and where that ends."""

from __future__ import annotations

from pathlib import Path

import click

from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.errors import cervix_errors
from cervix_engine.version import __version__

_FILE = click.Path(path_type=Path)


@click.command(cls=CervixCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", required=False, type=_FILE)
@click.option("--model", "model_option", type=_FILE, help="The same as MODEL.")
@click.option("--html", "as_page", is_flag=True, help="Print an HTML page instead of Markdown.")
@click.option("-o", "--out", type=_FILE, help="File to write, such as card.md.  [default: standard output]")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@click.option("--expect-digest", metavar="SHA256", help="Refuse a bundle with another digest.")
@click.version_option(__version__)
@cervix_errors
def main(
    model: Path | None,
    model_option: Path | None,
    as_page: bool,
    out: Path | None,
    overwrite: bool,
    expect_digest: str | None,
) -> None:
    """Print the model card of the bundle MODEL: data, split, metrics, operating point, certificates, limits.

    MODEL is by default $CERVIX_MODEL, else models/cervix. What the bundle does not say is said to be unknown.
    """
    from cervix_engine.bundle.bundle import Bundle, default_bundle
    from cervix_engine.errors import UsageError
    from cervix_engine.files import output_errors, require_free
    from cervix_engine.report.card import card_sections, card_title
    from cervix_engine.report.card_text import as_html, as_markdown

    if model and model_option and model != model_option:
        raise UsageError(f"two models were named, {model} and {model_option}: name one")
    if out is not None:
        require_free(out, overwrite=overwrite)
    bundle = Bundle.open(model or model_option or default_bundle(), expect_digest=expect_digest)
    written = as_html if as_page else as_markdown
    text = written(f"{card_title(bundle)} ({bundle.digest[:12]})", card_sections(bundle))
    if out is None:
        click.echo(text, nl=False)
        return
    with output_errors(f"cannot write {out}"):
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
