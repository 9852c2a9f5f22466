"""Looking after a corpus: check, clean, clicks, quality, a contact sheet. Training never imports it."""
