"""A notebook, as it was executed last, as a page of the site."""

from pathlib import Path

from nbconvert import MarkdownExporter
from traitlets.config import Config


def write_page(notebook: Path, page: Path) -> None:
    """Writes a page, and its pictures into a folder beside it."""
    settings = Config()
    settings.NbConvertBase.display_data_priority = ["image/png", "text/plain"]
    pictures = f"{page.stem}_files"
    text, resources = MarkdownExporter(config=settings).from_filename(
        str(notebook), {"output_files_dir": pictures, "unique_key": page.stem}
    )
    (page.parent / pictures).mkdir(parents=True, exist_ok=True)
    for name, data in resources["outputs"].items():
        (page.parent / name).write_bytes(data)
    page.write_text(text)
