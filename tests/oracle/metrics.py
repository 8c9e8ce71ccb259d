"""The mathematics once more: float64, plain loops, one function an equation, no JAX.

Written from the formulas alone, so that an error has to be made twice to go unseen.
A *profile* is f(c, h, clip). `clip` is the curve of the clipping as seen from where we stand (the
anchor): flat beyond ±0.99 under "hard", the line of slope 1 under "straight_through". Hence a
central difference of a profile is its exact derivative up to rounding, away from the kinks.
"""

import math

import numpy as np

LIMIT = 0.99
STEP = 1e-6

# --- the two similarities and their gradients ---------------------------------------------------


def unit(w):
    """û = w / ‖w‖; a zero vector stays zero."""
    norm = math.sqrt(sum(x * x for x in w))
    return np.array([x / norm if norm else 0.0 for x in w])


def code(u, kind="binary", threshold=0.0):
    """S(u) with s(0) = +1, or the ternary code that is 0 where |x| ≤ threshold·mean|u|."""
    dead = threshold * sum(abs(x) for x in u) / len(u)
    signs = []
    for x in u:
        if kind == "ternary" and abs(x) <= dead:
            signs.append(0.0)
        else:
            signs.append(1.0 if x >= 0 else -1.0)
    return np.array(signs)


def eq7_code_similarity(u, v, kind="binary", threshold=0.0):
    """D_h = (1/d) Σ_k s(u_k) s(v_k); with a dead zone divided by the norms of both codes."""
    s, t = code(u, kind, threshold), code(v, kind, threshold)
    total = sum(a * b for a, b in zip(s, t, strict=True))
    if kind == "ternary" and threshold > 0:
        norms = math.sqrt(sum(a * a for a in s) * sum(b * b for b in t))
        return total / norms if norms else 0.0
    return total / len(u)


def code_similarity_gradient(u, v, kind="binary", threshold=0.0):
    """∂h/∂u by the saturated straight-through estimator: ∂s/∂x := 1 where |x| ≤ 1, else 0."""
    s, t = code(u, kind, threshold), code(v, kind, threshold)
    gradient = np.zeros(len(u))
    h = eq7_code_similarity(u, v, kind, threshold)
    for k in range(len(u)):
        if abs(u[k]) > 1:
            continue
        if kind == "ternary" and threshold > 0:
            s2, t2 = sum(s * s), sum(t * t)
            gradient[k] = t[k] / math.sqrt(s2 * t2) - h * s[k] / s2
        else:
            gradient[k] = t[k] / len(u)
    return gradient


def through_normalisation(w, gradient):
    """∂/∂w of a function of û = w/‖w‖ whose gradient there is given: (I − ûûᵀ) g / ‖w‖."""
    norm, u = math.sqrt(sum(x * x for x in w)), unit(w)
    radial = sum(a * b for a, b in zip(u, gradient, strict=True))
    return np.array([(g - radial * x) / norm for g, x in zip(gradient, u, strict=True)])


def clip_from(anchor, clamp="hard"):
    """Clip(x, ±0.99) with the derivative that it has at the anchor, extended as a line."""

    def clip(x):
        if abs(anchor) <= LIMIT:
            return x
        limit = math.copysign(LIMIT, anchor)
        return limit if clamp == "hard" else limit + (x - anchor)

    return clip


# --- the table of metrics: name → (distance, energy), profiles of (c, h, clip_c, clip_h) ---------


def theta(c, clip_c):
    """θ = arccos(clip(c)) / π."""
    return math.acos(clip_c(c)) / math.pi


def theta_h(h, clip_h, prime):
    """θ_h = (1 − h)/2, or footnote 3: arccos(clip(h)) / π."""
    return math.acos(clip_h(h)) / math.pi if prime else (1 - h) / 2


def eq8(mean, a, b):
    """D_AM, D_GM, D_HM as printed (no root, 4 instead of 2), and the two textbook means."""
    if mean == "am":
        return (a + b) / 2
    if mean == "gm":
        return a * b
    if mean == "hm":
        return 4 * a * b / (a + b) if a + b else 0.0
    if mean == "gm_std":
        return math.sqrt(a * b)
    if mean == "hm_std":
        return 2 * a * b / (a + b) if a + b else 0.0
    raise KeyError(mean)


def eq9(mean, a, b):
    """The similarity (cos(π·D) + 1)/2 of a mean angle."""
    return (math.cos(math.pi * eq8(mean, a, b)) + 1) / 2


def eq10(mean, a, b):
    """Means of A/2 and B/2, A = cos(πθ_h) + 1 and B = cos(πθ) + 1, again with the printed GM."""
    if mean == "am":
        return (a + b) / 4
    if mean == "gm":
        return a * b / 4
    if mean == "hm":
        return a * b / (a + b) if a + b else 0.0
    raise KeyError(mean)


def _opposite(profile):
    return lambda *args: 1 - profile(*args)


def _angles(equation, mean, prime):
    """A profile of the two clipped angles."""
    return lambda c, h, clip_c, clip_h: equation(mean, theta_h(h, clip_h, prime), theta(c, clip_c))


def _cosines(mean, prime):
    """Eq. (10); its angles are not clipped, so cos(πθ) = c and, primed, cos(πθ_h) = h."""

    def profile(c, h, _clip_c, _clip_h):
        a = h + 1 if prime else math.cos(math.pi * (1 - h) / 2) + 1
        return eq10(mean, a, c + 1)

    return profile


def _table():
    code_metric = (lambda c, h, cc, ch: (1 - h) / 2, lambda c, h, cc, ch: (1 + h) / 2)
    table = {
        "cosine": (lambda c, h, cc, ch: 1 - c, lambda c, h, cc, ch: c),
        "n_euclidean2": (
            lambda c, h, cc, ch: math.sqrt(2 - 2 * c),
            lambda c, h, cc, ch: 1 / (2 - 2 * cc(c)),  # footnote 6
        ),
        "angular2": (
            lambda c, h, cc, ch: math.acos(c),
            lambda c, h, cc, ch: math.acos(cc(c)) ** -2,
        ),
        "d_h_bin": code_metric,
        "d_h_ter": code_metric,
    }
    for suffix, prime in (("", False), ("_prime", True)):
        for mean in ("am", "gm", "hm", "gm_std", "hm_std"):
            distance, similarity = _angles(eq8, mean, prime), _angles(eq9, mean, prime)
            table[f"d_{mean}{suffix}"] = (distance, _opposite(distance))
            table[f"d_cos_{mean}{suffix}"] = (_opposite(similarity), similarity)
        for mean in ("am", "gm", "hm"):
            similarity = _cosines(mean, prime)
            table[f"d_{mean}_cos{suffix}"] = (_opposite(similarity), similarity)
    return table


PROFILES = _table()
KINDS = {name: "ternary" if name == "d_h_ter" else "binary" for name in PROFILES}


# --- two vectors, and sums over pairs -----------------------------------------------------------


def pair(u, v, name, which="energy", clamp="hard", kind=None, threshold=0.0):
    """Value and both gradients of a metric of two vectors, by the chain rule through c and h."""
    kind, profile = kind or KINDS[name], PROFILES[name][which == "energy"]
    x, y = unit(u), unit(v)
    c = sum(a * b for a, b in zip(x, y, strict=True))
    h = eq7_code_similarity(x, y, kind, threshold)
    clips = clip_from(c, clamp), clip_from(h, clamp)
    slope_c = (profile(c + STEP, h, *clips) - profile(c - STEP, h, *clips)) / (2 * STEP)
    slope_h = (profile(c, h + STEP, *clips) - profile(c, h - STEP, *clips)) / (2 * STEP)
    gradients = []
    for w, a, b in ((u, x, y), (v, y, x)):
        at_unit = slope_c * b + slope_h * code_similarity_gradient(a, b, kind, threshold)
        gradients.append(through_normalisation(w, at_unit))
    return profile(c, h, *clips), *gradients


def pair_sum(W, weights, name, **options):
    """Σ weight·e(w_i, w_j) over {(i, j): weight}, and its gradient."""
    value, gradient = 0.0, np.zeros(np.shape(W))
    for (i, j), weight in weights.items():
        e, at_i, at_j = pair(W[i], W[j], name, **options)
        value += weight * e
        gradient[i] += weight * at_i
        gradient[j] += weight * at_j
    return value, gradient


def unordered_pairs(n, where=None):
    """All i < j that take part."""
    keep = range(n) if where is None else [i for i in range(n) if where[i]]
    return [(i, j) for i in keep for j in keep if i < j]


def mean_weights(pairs):
    """A mean over pairs; nothing where there is no pair."""
    return {p: 1 / len(pairs) for p in pairs}


def mean_energy(W, name, where=None, **options):
    """The mean over pairs of e, and its gradient."""
    return pair_sum(W, mean_weights(unordered_pairs(len(W), where)), name, **options)


def eq5_weights(groups, pairs):
    """Mean over the groups that have a pair of the mean over the group's pairs."""
    per_group = {}
    for i, j in pairs:
        if groups[i] == groups[j]:
            per_group.setdefault(groups[i], []).append((i, j))
    return {p: 1 / len(per_group) / len(own) for own in per_group.values() for p in own}


def eq5_group_energy(W, groups, name, where=None, **options):
    """R_lp: groups with fewer than two present members are skipped."""
    weights = eq5_weights(groups, unordered_pairs(len(W), where))
    return pair_sum(W, weights, name, **options)


def eq6_center_energy(C, name, groups=None, where=None, **options):
    """R_lc: mean over all pairs of centres that share a group, pooled over the groups."""
    pairs = unordered_pairs(len(C), where)
    if groups is not None:
        pairs = [(i, j) for i, j in pairs if groups[i] == groups[j]]
    return pair_sum(C, mean_weights(pairs), name, **options)
