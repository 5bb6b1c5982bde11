"""One outside thing each, and the only importer of its library. Dicts and foreign errors end here."""
