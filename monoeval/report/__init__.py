"""What people read: tables, figures, Markdown and HTML."""
