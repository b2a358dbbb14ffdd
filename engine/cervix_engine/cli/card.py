"""`cervix-card`: what a bundle's model is, what it learnt from, how well it does, and where that ends."""

from __future__ import annotations

from pathlib import Path

import click

from cervix_engine.cli.shared.command import CervixCommand
from cervix_engine.cli.shared.options import FILE, expect_digest_option, option


@click.command(cls=CervixCommand)
@click.argument("model", required=False, type=FILE)
@option("--model", "model_option", type=FILE, help="The same as MODEL.")
@option("--html", "as_page", is_flag=True, help="Print an HTML page instead of Markdown.")
@option("-o", "--out", type=FILE, help="File to write, such as card.md.  [default: standard output]")
@option("--overwrite", is_flag=True, help="Replace an existing file.")
@expect_digest_option
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
    from cervix_engine.files import atomic_path, output_errors
    from cervix_engine.outputs.places import require_free
    from cervix_engine.report.card import card_sections, card_title
    from cervix_engine.report.card_text import as_html, as_markdown

    if model and model_option and model != model_option:
        raise UsageError(f"two models were named, {model} and {model_option}: name one")
    root = model or model_option or default_bundle()
    if out is not None:
        require_free(out, overwrite=overwrite, inputs=(root,))
    bundle = Bundle.open(root, expect_digest=expect_digest)
    written = as_html if as_page else as_markdown
    text = written(f"{card_title(bundle)} ({bundle.digest[:12]})", card_sections(bundle))
    if out is None:
        click.echo(text, nl=False)
        return
    with output_errors(f"cannot write {out}"), atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
