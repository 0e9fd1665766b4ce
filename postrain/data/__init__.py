"""Data: sources, formats, records, chat templates, loss masks, filters, audit and batches."""
