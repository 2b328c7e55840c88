"""Source ``folder``: an ``mlruns`` folder of files, read without MLflow's store."""
