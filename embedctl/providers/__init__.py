"""Wire formats, one pure file each.

A new provider is one file here, its rows in `catalog/`, and its wire examples in the tests.
"""

from embedctl.providers._registry import PROTOCOLS as PROTOCOLS
from embedctl.providers._registry import is_local as is_local
from embedctl.providers._registry import is_lookup as is_lookup
from embedctl.providers._registry import protocol as protocol
