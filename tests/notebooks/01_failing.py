# %%
import os
import signal

# %% tags=["parameters"]
profile: str = "cpu"
die = False  # kill the kernel rather than raise

# %%
if die:
    os.kill(os.getpid(), signal.SIGKILL)
raise ValueError("a failure on purpose")
