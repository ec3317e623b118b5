"""What is clicked: a server for one or two runs, on this machine only, and the page that it serves."""

from .book import RunBook, open_books
from .notebook import Explorer, explore
from .serve import Address, serve
from .server import create_app

__all__ = ["Address", "Explorer", "RunBook", "create_app", "explore", "open_books", "serve"]
