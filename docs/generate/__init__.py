"""The parts of pages that are generated, and the pages of the site as one folder."""
