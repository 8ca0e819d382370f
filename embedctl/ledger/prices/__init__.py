"""What a token costs, where and when: dated prices with their sources. Unknown is None, never zero."""

from embedctl.ledger.prices.price_list import STALE_AFTER as STALE_AFTER
from embedctl.ledger.prices.price_list import PriceBook as PriceBook
from embedctl.ledger.prices.price_list import catalog_day as catalog_day
from embedctl.ledger.prices.price_list import catalog_text as catalog_text
from embedctl.ledger.prices.price_list import fingerprint as fingerprint
from embedctl.ledger.prices.price_list import load as load
from embedctl.ledger.prices.price_list import price_texts as price_texts
