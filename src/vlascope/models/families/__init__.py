"""One file per family of models; see `vlascope.models.family` for what each has to say."""
