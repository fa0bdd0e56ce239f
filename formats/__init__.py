"""File formats: one package each, every one meeting the others in :class:`qconv.formats.base.Model`."""
