"""A notebook, as it was executed last, as a page of the site."""

from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config


def write_page(notebook: Path, page: Path) -> None:
    """Writes a page, and its pictures into a folder beside it."""
    settings = Config()
    settings.NbConvertBase.display_data_priority = ["image/png", "text/plain"]
    settings.CoalesceStreamsPreprocessor.enabled = True
    pictures = f"{page.stem}_files"
    text, resources = MarkdownExporter(config=settings).from_notebook_node(
        _with_lines_together(nbformat.read(notebook, 4)), {"output_files_dir": pictures, "unique_key": page.stem}
    )
    (page.parent / pictures).mkdir(parents=True, exist_ok=True)
    for name, data in resources["outputs"].items():
        (page.parent / name).write_bytes(data)
    page.write_text(text)


def _with_lines_together(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The lines that a training displays one by one as one output each cell."""
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        for index, output in enumerate(outputs):
            lines = output.get("data", {}).get("text/plain", "")
            if output.output_type == "display_data" and "image/png" not in output.data and lines:
                outputs[index] = nbformat.v4.new_output("stream", name="stdout", text=f"{lines.strip()}\n")
    return notebook
