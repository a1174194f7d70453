"""Where the checkout lies, and the published examples beside it where there are any."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
EXAMPLES = CHECKOUT.parent / "shared" / "reference" / "examples"
