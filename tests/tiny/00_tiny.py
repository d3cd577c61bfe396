# %% [markdown]
# # A tiny notebook
# One stored result, one figure, one table.

# %%
import sys

import matplotlib.pyplot as plt
import pandas as pd

from nullpaper.workflow.figures import save_figure, save_table, use_style
from nullpaper.workflow.store import stored

use_style()

# %% tags=["parameters"]
count: int = 4  # points drawn
eps: float = 0.5
names: list = ["a", "b"]
label = "plain"

# %%
result = stored("squares", {"count": count}, lambda: [index**2 for index in range(count)])
print(f"seen: {sys.executable} | {label} | reused {result.reused}")

# %%
figure, axes = plt.subplots()
axes.plot(result.metrics)
save_figure(figure, "squares")

# %%
save_table(pd.DataFrame({"square": result.metrics, "eps": eps}), "squares")
