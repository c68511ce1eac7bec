"""What people read: tables, figures, Markdown and HTML. Nothing here imports torch."""

from monoeval.report.model import Summary
from monoeval.report.summary import summarise, to_json
from monoeval.report.writer import write

__all__ = ["Summary", "summarise", "to_json", "write"]
