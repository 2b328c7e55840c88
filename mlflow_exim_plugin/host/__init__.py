"""MLflow, our host: the only modules that call it. Everything above speaks REST documents."""
