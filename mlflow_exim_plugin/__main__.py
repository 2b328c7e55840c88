"""``python -m mlflow_exim_plugin``: the same as ``mlflow-exim``."""

from mlflow_exim_plugin.entrypoints import main

if __name__ == "__main__":
    main()
