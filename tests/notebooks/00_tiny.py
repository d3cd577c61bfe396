# %% [markdown]
# # A tiny notebook
# One stored result, one figure, one table.

# %%
import sys

import matplotlib.pyplot as plt
import pandas as pd

from nullpaper.workflow.figures import save_figure, save_table
from nullpaper.workflow.store import stored

# %% tags=["parameters"]
profile: str = "cpu"
count: int | None = None  # points drawn; None: the profile's
eps: float = 0.5
names: list[str] = ["a", "b"]
label = "plain"

# %%
points = count or 4
result = stored("squares", {"count": points}, lambda: [index**2 for index in range(points)])
print(f"seen: {sys.executable} | {label} | reused {result.reused}")

# %%
figure, axes = plt.subplots()
axes.plot(result.metrics)
save_figure(figure, "squares", sources=[result])

# %%
save_table(pd.DataFrame({"square": result.metrics, "eps": eps}), "squares", sources=[result])
