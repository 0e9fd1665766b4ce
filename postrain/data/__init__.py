"""From files, the Hub or the world to batches: records, formats, templates, masks, quality, audit, schedule."""
