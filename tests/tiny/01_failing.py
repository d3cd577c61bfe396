# %%
import os
import signal

# %% tags=["parameters"]
fail: bool = True
die: bool = False  # kill the kernel rather than raise

# %%
if die:
    os.kill(os.getpid(), signal.SIGKILL)
if fail:
    raise ValueError("a failure on purpose")
