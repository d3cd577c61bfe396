"""What papers A and C claim of frozen models, and how the tables of results decide it.

Here: exact and learned nullspaces, notebooks 01 and 02. `CLAIMS` are all, in the order in which the README shows them.
"""

from __future__ import annotations

from nullpaper.statistics import Interval
from nullpaper.studies.claims_finetuning import FINETUNING
from nullpaper.studies.claims_fooling import FOOLING
from nullpaper.studies.claims_fulllora import FULLLORA
from nullpaper.studies.evidence import (
    Missing,
    Tables,
    above,
    at_least,
    below,
    counted,
    every,
    number,
    percent,
    some,
    word,
)
from nullpaper.studies.judging import Claim, claim

__all__ = ["CLAIMS"]

EPS = 0.03  # on the mean squared change of the softmax, in notebook 02


@claim(
    "A, C",
    "",
    "most ViT configurations have an exact nullspace",
    where="01 (a)",
    criterion="holds if the embedding alone ignores dimensions in more than half of the listed timm configurations; "
    "in part if only embedding and LayerNorm together do",
)
def existence(tables: Tables) -> tuple[str, str]:
    table = tables["01_nullity"]
    embedding, encoder = ((table[column] > 0).sum() for column in ("dim_embedding", "dim_encoder"))
    measured = (
        f"{embedding} of {len(table)} timm configurations by their embedding; {encoder} with the one dimension a patch "
        "that LayerNorm removes"
    )
    return measured, word(2 * embedding > len(table), 2 * encoder > len(table))


@claim(
    "C",
    "code",
    "a basis for each colour channel finds that nullspace",
    where="01 (a)",
    criterion="holds if the three bases have as many dimensions as the joint nullspace in every configuration that has "
    "one",
)
def per_channel(tables: Tables) -> tuple[str, str]:
    table = tables["01_nullity"].query("dim_embedding > 0")
    short, empty = table["dim_per_channel"] < table["dim_embedding"], table["dim_per_channel"] == 0
    measured = f"it misses dimensions in {short.sum()} of {len(table)} configurations and finds none in {empty.sum()}"
    return measured, word(not short.any(), not short.all())


@claim(
    "A",
    "authors' reply",
    "ViT-B/16 has a numerical nullspace",
    where="01 (a), (b)",
    criterion="holds if its embedding, by shape, and a trained square embedding, by float64's tolerance, ignore a "
    "dimension",
)
def numerical_rank(tables: Tables) -> tuple[str, str]:
    model = tables.row("01_nullity", model="vit_base_patch16_224")
    square = tables.row("01_ranks", matrix="192 x 192, trained")
    measured = (
        f"by shape its embedding ignores {model['dim_embedding']} dimensions and its encoder {model['dim_encoder']} a "
        f"patch; of a trained square embedding {square['dim, SciPy float64']} by float64's tolerance, "
        f"{square['dim, float16 weights']} by float16's, {square['dim, bfloat16 weights']} by bfloat16's"
    )
    return measured, word(bool(model["dim_embedding"] > 0 and square["dim, SciPy float64"] > 0))


@claim(
    "",
    "",
    "a non-linear encoder has an exact nullspace: shifts along the all-ones vector (proved)",
    where="01 (a)",
    criterion="holds if the longest shift changes the logits by less than 0.1 % and random noise of its norm by more "
    "than 10 %",
)
def layer_norm(tables: Tables) -> tuple[str, str]:
    norm = tables["01_token_shift"]["norm"].max()
    at = {"dtype": "float32", "norm": norm}
    shift, random = (
        tables.interval("01_token_shift", "relative_change", noise=noise, **at) for noise in ("shift along 1", "random")
    )
    measured = (
        f"of norm {norm:,.0f} in float32: logits change by {number(shift, '.0e', None)} of their norm, by "
        f"{number(random, '.2f', None)} under random noise (n = {shift.n:,})"
    )
    return measured, word(every((below(shift, 1e-3), at_least(random, 0.1))))


def _unchanged(tables: Tables, noise: str, transport: str) -> Interval:
    share = tables["01_stability"]["share"].max()
    return tables.interval("01_stability", "unchanged", share=share, noise=noise, transport=transport)


@claim(
    "A, C",
    "",
    "exact nullspace noise changes nothing",
    where="01 (c)",
    criterion="holds if at least 99 % of predictions stay under the largest legal noise, and under 50 % in both "
    "controls",
)
def exact_noise(tables: Tables) -> tuple[str, str]:
    kinds = ("exact nullspace", "Gaussian", "permuted")
    exact, gaussian, permuted = (_unchanged(tables, kind, "float32") for kind in kinds)
    rows = tables.rows("01_stability", noise="exact nullspace", transport="float32")
    row = rows.loc[rows["share"].idxmax()]
    measured = (
        f"at the largest legal norm ({row['norm']:.1f} on average) predictions stay for {percent(exact, 'images')}, "
        f"largest logit change {row['largest_logit_change']:.0e}; at that norm Gaussian noise leaves "
        f"{percent(gaussian, None)}, permuted {percent(permuted, None)}"
    )
    return measured, word(every((at_least(exact, 0.99), below(gaussian, 0.5), below(permuted, 0.5))))


@claim(
    "",
    "",
    "exact noise survives being stored as a file",
    where="01 (c)",
    criterion="holds if at least 99 % of predictions stay both in 8 bits and as JPEG 90, in part if in one of them",
)
def stored_noise(tables: Tables) -> tuple[str, str]:
    bits, jpeg = (_unchanged(tables, "exact nullspace", transport) for transport in ("8 bits", "JPEG 90"))
    answers = at_least(bits, 0.99), at_least(jpeg, 0.99)
    measured = f"8 bits: {percent(bits, None)} unchanged; JPEG 90: {percent(jpeg)}"
    return measured, word(every(answers), some(answers))


@claim(
    "A",
    "eq. 7",
    f"there is a largest noise within eps = {EPS}",
    where="02 (a)",
    criterion=f"ill-posed if random noise of the largest norm tried, on one token, has influence below {EPS}: "
    "LayerNorm saturates and the norm is free",
)
def largest_noise(tables: Tables) -> tuple[str, str]:
    table = tables["02_lost_by_token"]
    within = [below(influence, EPS) for influence in counted(table, "influence")]
    measured = (
        f"random noise of norm {table['norm'].max():,.0f} on a single token stays within eps for {within.count(True)} "
        f"of {len(within)} tokens (influence up to {table['influence_high'].max():.3f}, n = {table['n'].min():,})"
    )
    if some(within):
        measured += ": LayerNorm saturates, and the net loses that token and nothing else"
    return measured, "ill-posed" if some(within) else "not resolved"


@claim(
    "A, C",
    "figure of A",
    "match survives a noise and not its permutation, so its direction is special",
    where="02 (a)",
    criterion="no if random noise, which learned nothing, keeps at least 90 % and its permutation under 50 %",
)
def permutation_control(tables: Tables) -> tuple[str, str]:
    kinds = ("random, one token", "permuted", "permuted within")
    random, permuted, within = (tables.interval("02_unlearned", "match", noise=kind) for kind in kinds)
    norm = tables.row("02_unlearned", noise=kinds[0])["norm"]
    fooled = every((at_least(random, 0.9), below(permuted, 0.5)))
    measured = (
        f"random noise of norm {norm:,.0f} on one token, which learned nothing: match {percent(random, None)}, its "
        f"permutation {percent(permuted, 'images')}; permuted within tokens {percent(within, None)}"
    )
    return measured, "no" if fooled else "not resolved"


@claim(
    "A, C",
    "eq. 6 of A",
    "learned noise keeps predictions, permuted noise does not",
    where="02 (b)",
    criterion="holds if the learned noise's match is above that of its permutation at every lambda, in part if at some",
)
def learned_noise(tables: Tables) -> tuple[str, str]:
    kinds, shown, answers = ("learned", "permuted", "permuted within"), [], ([], [])
    strengths = sorted(tables["02_lambda"]["lambda"].unique())
    for strength in strengths:
        match = [tables.interval("02_lambda", "match", **{"lambda": strength, "noise": kind}) for kind in kinds]
        for known, control in zip(answers, match[1:], strict=True):
            known.append(above(match[0], control))
        learned, permuted, within = (percent(share, None) for share in match)
        shown.append(f"learned {learned}, permuted {permuted}, within tokens {within}")
    measured = (
        f"at lambda {strengths[0]:g} {shown[0]}; at {strengths[-1]:g} {shown[-1]} (n = {match[0].n} noise seeds); "
        f"above its permutation at {answers[0].count(True)} of {len(strengths)} lambdas, above that within tokens at "
        f"{answers[1].count(True)}"
    )
    return measured, word(every(answers[0]), some(answers[0]))


@claim(
    "A, C",
    "figure of A",
    "the norm of learned noise grows with lambda",
    where="02 (b)",
    criterion="holds if each norm is above the one before, in part if the last is above the first",
)
def norm_of_lambda(tables: Tables) -> tuple[str, str]:
    rows = tables.rows("02_lambda", noise="learned").sort_values("lambda")
    norms, strengths = counted(rows, "norm"), rows["lambda"].tolist()
    steps = every(above(later, earlier) for earlier, later in zip(norms, norms[1:], strict=False))
    measured = f"{number(norms[0], of=None)} at {strengths[0]:g}, {number(norms[-1])} at {strengths[-1]:g}"
    return measured, word(steps, above(norms[-1], norms[0]))


@claim(
    "A",
    "code",
    f"the published procedure ends within eps = {EPS}",
    where="02 (c)",
    criterion="holds if the influence of every run, on held-out images, is below eps; in part if of some",
)
def published_procedure(tables: Tables) -> tuple[str, str]:
    rows = tables.rows("02_eps_runs", method="official")
    within = [below(influence, EPS) for influence in counted(rows, "influence")]
    measured = (
        f"it returns norm {number(tables.interval('02_eps', 'norm', method='official'))}, within eps in "
        f"{within.count(True)} of {len(within)} runs (influence up to {rows['influence_high'].max():.3f})"
    )
    return measured, word(every(within), some(within))


@claim(
    "",
    "",
    "learned noise is larger than random noise at the same eps",
    where="02 (c)",
    criterion="holds if the published noise, rescaled to eps, and ours are both above random noise; in part if one is",
)
def norm_at_eps(tables: Tables) -> tuple[str, str]:
    methods = ("ours, spread", "linearised", "official, rescaled", "random")
    ours, linear, official, random = (tables.interval("02_eps", "norm", method=method) for method in methods)
    answers = above(ours, random), above(official, random)
    measured = (
        f"norm at verified eps = {EPS}: ours with equal tokens {number(ours)}, linearised encoder in closed form "
        f"{number(linear)}, published procedure rescaled {number(official)}, random {number(random)}"
    )
    return measured, word(every(answers), some(answers))


@claim(
    "A",
    "appendix A.5",
    "the set of noises within eps is closed under scaling and convex combination",
    where="02 (d)",
    criterion="holds if halves, negatives and convex combinations of solutions all stay within eps; in part if halves "
    "or combinations do",
)
def closure(tables: Tables) -> tuple[str, str]:
    multiples, mixed = (tables.rows("02_closure", kind=kind) for kind in ("multiple", "combination"))
    solutions = tables.rows("02_closure", kind="multiple", factor=1)["norm"]
    kinds = {
        "half of it": multiples[(multiples["factor"] > 0) & (multiples["factor"] < 1)],
        "a combination": mixed,
        "its negative": tables.rows("02_closure", kind="multiple", factor=-1),
    }
    answers = [every(below(influence, EPS) for influence in counted(rows, "influence")) for rows in kinds.values()]
    inside = {True: "yes", False: "no", None: "undecided"}
    shown = (
        f"{kind} {inside[answer]} (influence up to {rows['influence_high'].max():.3f})"
        for (kind, rows), answer in zip(kinds.items(), answers, strict=True)
    )
    measured = (
        f"{', '.join(shown)} (n = {mixed['n'].min():,}); a combination has norm {mixed['norm'].min():.0f} to "
        f"{mixed['norm'].max():.0f}, solutions {solutions.min():.0f} to {solutions.max():.0f}"
    )
    return measured, word(every(answers), some(answers[:2]))


@claim(
    "",
    "",
    "that set is large: it has room in half of all dimensions",
    where="02 (d)",
    criterion="holds if every random direction in the quieter half of the dimensions reaches a larger norm within eps "
    "than every unrestricted one",
)
def size(tables: Tables) -> tuple[str, str]:
    table = tables["02_dimension"]
    whole = table["dimension"].max()
    half = min(table["dimension"], key=lambda size: abs(size - whole / 2))
    if abs(half - whole / 2) > 0.1 * whole:
        raise Missing("02_dimension: half of the dimensions")
    quiet, free = (tables.rows("02_dimension", dimension=number)["norm"] for number in (half, whole))
    measured = (
        f"random directions in the quieter half ({half:,} of {whole:,} dimensions) reach norm {quiet.min():.1f} to "
        f"{quiet.max():.1f}, unrestricted ones {free.min():.1f} to {free.max():.1f} ({len(quiet)} draws each)"
    )
    return measured, word(bool(quiet.min() > free.max()))


EXISTENCE = (existence, per_channel, numerical_rank, layer_norm, exact_noise, stored_noise)
LEARNED = (largest_noise, permutation_control, learned_noise, norm_of_lambda)
APPROXIMATE = (published_procedure, norm_at_eps, closure, size)
CLAIMS: tuple[Claim, ...] = EXISTENCE + LEARNED + APPROXIMATE + FOOLING + FINETUNING + FULLLORA
