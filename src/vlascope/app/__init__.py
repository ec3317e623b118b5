"""What is clicked: a server for one or two runs, on this machine only, and the page that it serves."""

from .book import RunBook, open_books
from .serve import Address, serve
from .server import create_app

__all__ = ["Address", "RunBook", "create_app", "open_books", "serve"]
