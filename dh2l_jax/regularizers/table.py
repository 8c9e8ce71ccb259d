"""The table of regularisers: what the field adds to a loss, by name, as functions of a matrix.

A row is a metric under a reduction, or a function of `field/`. Whatever takes the name of a metric
for E takes the name of a row: plans and their rules, `weight_energy`, the trainer.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.typing import ArrayLike

from dh2l_jax.checks import name_and_options, unknown_name
from dh2l_jax.metrics import METRICS, Metric, get_metric, mean_energy
from dh2l_jax.metrics.table import FAMILIES, REDUCED
from dh2l_jax.regularizers.field.centers import uniformface
from dh2l_jax.regularizers.field.convolution import ocnn
from dh2l_jax.regularizers.field.determinants import dpp, log_det, mgd
from dh2l_jax.regularizers.field.features import barlow, decov, ole, vicreg_covariance
from dh2l_jax.regularizers.field.hyperspherical import comhe, mar, mhc, mhp, r_mhp
from dh2l_jax.regularizers.field.orthogonal import brock, dso, mc, so
from dh2l_jax.regularizers.field.singular import spectral, srip
from dh2l_jax.regularizers.field.spectra import uer, von_neumann

__all__ = ["REGULARIZERS", "Regularizer", "Row", "mean_of", "regularizer"]

VECTORS, KERNEL, FEATURES = "vectors", "kernel", "features"


@dataclasses.dataclass(frozen=True)
class Row:
    """A regulariser of the field.

    Attributes:
      symbol: as its paper prints it.
      source: the paper.
      looks_at: "vectors" (n, d), a "kernel" (kh, kw, cin, cout) or "features" (b, k) of a batch.
      formula: what is minimised.
      cost: arithmetic of a value, for n vectors of length d.
      function: (W, where=None, *, options) → scalar.
      options: name → default.
      needs: further arguments of each call.
      metric: name of the metric that is reduced, "" if it is none.
      reduction: of `mean_energy`.
    """

    symbol: str
    source: str
    looks_at: str
    formula: str
    cost: str
    function: Callable[..., jax.Array] = dataclasses.field(repr=False)
    options: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    metric: str = ""
    reduction: str = ""


@dataclasses.dataclass(frozen=True)
class Regularizer:
    """A row with its options: a function of a matrix, static and equal by its name.

    Attributes:
      name: with the options in it, "mar(gamma=0.5)".
      row: of `REGULARIZERS`, or one made of a metric.
      options: name → value of those that were given.
      clamp: of its metric.
    """

    name: str
    row: Row = dataclasses.field(compare=False, repr=False)
    options: Mapping[str, Any] = dataclasses.field(compare=False, repr=False)
    clamp: str = "hard"

    def __call__(self, W: ArrayLike, *further: Any, where: Any = None, **named: Any) -> jax.Array:
        """Its value; behind W comes what it needs, in order, then `where`, each also by name."""
        given = dict(zip((*self.row.needs, "where"), further, strict=False))
        given = {"where": where} | given | named
        if missing := [name for name in self.row.needs if name not in given]:
            raise TypeError(f"{self.name} needs {' and '.join(missing)}: call {self._call()}")
        if self.row.metric:
            given["clamp"] = self.clamp
        return self.row.function(W, **given, **self.options)

    def _call(self) -> str:
        what = "X" if self.row.looks_at == FEATURES else "W"
        return f"dh2l.regularizer({self.name!r})({', '.join([what, *self.row.needs])})"

    def refuse_parameters(self) -> None:
        """Raises a `ValueError` if the regulariser needs more than a model's parameters."""
        features = ["features of a batch"] if self.row.looks_at == FEATURES else []
        needs = [*features, *self.row.needs]
        if needs:
            raise ValueError(
                f"{self.name} needs {' and '.join(needs)}, found parameters alone: add "
                f"{self._call()} to the loss"
            )


def _of_metric(metric: str, reduction: str, W: ArrayLike, where: Any = None, **options: Any):
    half_space, clamp = options.pop("half_space", False), options.pop("clamp", "hard")
    what = get_metric(_with_options(metric, options), clamp=clamp)
    return mean_energy(W, what, where=where, reduction=reduction, half_space=half_space)


def _with_options(text: str, options: Mapping[str, Any]) -> str:
    name, defaults = name_and_options(text)
    return _text(name, {**defaults, **options})


def _text(name: str, options: Mapping[str, Any]) -> str:
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"{name}({given})" if given else name


def _mean(metric: str, symbol: str, source: str, formula: str) -> Row:
    """The mean over pairs of a metric, with the options of both."""
    make = FAMILIES.get(metric)
    parameters = list(inspect.signature(make).parameters.values())[1:] if make else []
    known = get_metric(metric)
    cost = "nd" if known.affine else SMALL_SIDE if known.square else "n²d"
    options = {p.name: p.default for p in parameters}
    return _of_pairs(metric, "mean", symbol, source, formula, cost, options)


def _reduced(name: str, symbol: str, source: str, formula: str) -> Row:
    """What the field calls a metric under another reduction."""
    metric, reduction = REDUCED[name]
    options = name_and_options(metric)[1]
    return _of_pairs(metric, reduction, symbol, source, formula, "n²d", options)


def _of_pairs(
    metric: str,
    reduction: str,
    symbol: str,
    source: str,
    formula: str,
    cost: str,
    options: Mapping[str, Any],
) -> Row:
    function = functools.partial(_of_metric, metric, reduction)
    options = {**options, "half_space": False, "precision": "highest"}
    what = (VECTORS, formula, cost, function, types.MappingProxyType(options))
    return Row(symbol, source, *what, metric=metric, reduction=reduction)


def _own(
    function: Callable[..., jax.Array],
    symbol: str,
    source: str,
    formula: str,
    cost: str,
    looks_at: str = VECTORS,
) -> Row:
    """A function (W, ..., where=None, *, options); what has no default is needed at each call."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    parameters = [p for p in parameters if p.name != "where"]
    needs = tuple(p.name for p in parameters if p.default is p.empty)
    options = {p.name: p.default for p in parameters if p.default is not p.empty}
    what = (looks_at, formula, cost, function, types.MappingProxyType(options))
    return Row(symbol, source, *what, needs)


MHE = "Liu et al., NeurIPS 2018"
SPHERES = "Liu et al., AISTATS 2021"
BANSAL = "Bansal et al., NeurIPS 2018"
BREGMAN = "Xie et al., 2018"
SMALL_SIDE = "nd·min(n, d)"
BATCH = ("bk·min(b, k)", FEATURES)
SMALL_CUBE = "nd·min(n, d) + min(n, d)³"

REGULARIZERS: Mapping[str, Row] = types.MappingProxyType(
    {
        "mhe_s0": _mean("mhe_s0", "E_0", MHE, "mean −log ‖û_i−û_j‖"),
        "mhe_s1": _mean("mhe_s1", "E_1", MHE, "mean ‖û_i−û_j‖⁻¹"),
        "mhe_s2": _mean("mhe_s2", "E_2", MHE, "mean ‖û_i−û_j‖⁻²"),
        "mhe_a0": _mean("mhe_a0", "E_0^a", MHE, "mean −log θ_ij"),
        "mhe_a1": _mean("mhe_a1", "E_1^a", MHE, "mean θ_ij⁻¹"),
        "mhe_a2": _mean("mhe_a2", "E_2^a", MHE, "mean θ_ij⁻²"),
        "abs_cosine": _mean("abs_cosine", "|c|", "Keras, OrthogonalRegularizer", "mean |c_ij|"),
        "cosine2": _mean("cosine2", "c²", "frame potential", "mean c_ij²"),
        "gaussian": _mean("gaussian", "G_t", "Wang & Isola, ICML 2020", "mean exp(−t ‖û_i−û_j‖²)"),
        "angular_hinge": _mean(
            "angular_hinge", "max(0, |c|−τ)", "Xie et al., ICML 2017", "mean max(0, |c_ij| − τ)"
        ),
        "uniformface": _own(
            uniformface, "L_u", "Duan et al., CVPR 2019", "mean 1/(‖w_i−w_j‖ + 1)", "n²d"
        ),
        "uniformity": _reduced(
            "uniformity",
            "L_uniform",
            "Wang & Isola, ICML 2020",
            "log mean exp(−t ‖û_i−û_j‖²)",
        ),
        "mma": _reduced("mma", "MMA", "Wang et al., NeurIPS 2020", "−mean_i min_j θ_ij"),
        "regularface": _reduced(
            "regularface", "L_inter", "Zhao et al., CVPR 2019", "mean_i max_j c_ij"
        ),
        "koleo": _reduced(
            "koleo", "L_KoLeo", "Sablayrolles et al., ICLR 2019", "−mean_i log min_j ‖û_i−û_j‖"
        ),
        "mhs": _reduced("mhs", "MHS", SPHERES, "−min ‖û_i−û_j‖²"),
        "coherence": _reduced("coherence", "μ", "Welch, 1974", "max |c_ij|"),
        "so": _own(so, "SO", BANSAL, "‖G − I‖_F²", SMALL_SIDE),
        "dso": _own(dso, "DSO", BANSAL, "‖WWᵀ − I‖_F² + ‖WᵀW − I‖_F²", SMALL_SIDE),
        "brock": _own(brock, "R_β", "Brock et al., ICLR 2019", "‖G ⊙ (1 − I)‖_F²", SMALL_SIDE),
        "mc": _own(mc, "MC", BANSAL, "max |G − I|, of entries or row sums", "n²d"),
        "srip": _own(srip, "SRIP", BANSAL, "σ_max(G − I)", SMALL_CUBE),
        "spectral": _own(spectral, "σ²/2", "Yoshida & Miyato, 2017", "σ_max(W)²/2", SMALL_CUBE),
        "ocnn": _own(
            ocnn, "OCNN", "Wang et al., CVPR 2020", "‖Conv(K, K) − I₀‖_F²", "(2k−1)²·nd", KERNEL
        ),
        "mar": _own(mar, "Ω", "Xie et al., KDD 2015", "−(mean φ − γ var φ), φ = arccos |c|", "n²d"),
        "r_mhp": _own(r_mhp, "r-MHP", SPHERES, "‖Σ_i û_i‖", "nd"),
        "mhp": _own(mhp, "MHP", SPHERES, "−mean_i ‖û_i−v̂‖⁻ˢ, v a pole", "nd"),
        "mhc": _own(mhc, "MHC", SPHERES, "−log mean_i exp(−γ ‖û_i−v̂‖²)/γ, v a pole", "nd"),
        "comhe": _own(
            comhe, "CoMHE", "Lin et al., CVPR 2020", "mean_P mhe_s2(WPᵀ) of the half-space", "n²k"
        ),
        "mgd": _own(mgd, "MGD", SPHERES, "−log det(exp(−ε ‖û_i−û_j‖²) + rI)", "n²d + n³"),
        "dpp": _own(dpp, "DPP", "Kwok & Adams, NeurIPS 2012", "−log det(C + rI)", SMALL_CUBE),
        "uer": _own(uer, "UER", "Xie et al., ICML 2017", "Σ_k p_k log p_k + log k", SMALL_CUBE),
        "von_neumann": _own(von_neumann, "D_vN", BREGMAN, "tr(G log G − G + I)", SMALL_CUBE),
        "log_det": _own(log_det, "D_ld", BREGMAN, "tr G − log det(G + rI) − n", SMALL_CUBE),
        "decov": _own(decov, "L_DeCov", "Cogswell et al., ICLR 2016", "½ Σ_{k≠l} Σ_kl²", *BATCH),
        "vicreg_covariance": _own(
            vicreg_covariance, "c(Z)", "Bardes et al., ICLR 2022", "Σ_{k≠l} Σ_kl²/k", *BATCH
        ),
        "barlow": _own(barlow, "L_BT", "Zbontar et al., ICML 2021", "Σ_{k≠l} ρ_kl²", *BATCH),
        "ole": _own(
            ole,
            "OLÉ",
            "Lezama et al., CVPR 2018",
            "(Σ_c max(1, ‖X_c‖_*) − ‖X‖_*)/b",
            "bk·min(b, k) + b³",
            FEATURES,
        ),
    }
)
"""Every regulariser of the field by name; metrics of `METRICS` are known to `regularizer` too."""


def regularizer(text: str, *, clamp: str = "hard") -> Regularizer:
    """The regulariser of a name, with options in the text: a function W, where=None → scalar.

    Args:
      text: a key of `REGULARIZERS`, or a metric, whose mean over pairs is taken; with options
        where it takes some, "mhe_s2(half_space=True)".
      clamp: of a metric, as in `get_metric`.

    Returns:
      A callable (W, where=None) → scalar, to be minimised; float32 inside, float64 stays. Where a
      row `needs` more, such as a key, that comes behind W.

    Raises:
      ValueError: unknown name (the nearest one is named), option or clamp.

    >>> import dh2l_jax as dh2l
    >>> W = jax.numpy.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> round(float(regularizer("regularface")(W)), 4), dh2l.REGULARIZERS["mma"].formula
    (0.7071, '−mean_i min_j θ_ij')
    """
    if not isinstance(text, str):
        raise TypeError(f"expected a regulariser's name, found {text!r}")
    return _regularizer(text, clamp)


@functools.cache
def _regularizer(text: str, clamp: str) -> Regularizer:
    name, options = name_and_options(text)
    if name not in REGULARIZERS and name not in FAMILIES and name not in METRICS:
        names = dict.fromkeys((*REGULARIZERS, *METRICS, *FAMILIES))
        raise ValueError(unknown_name("regulariser", name, names))
    row = REGULARIZERS[name] if name in REGULARIZERS else _of_name(name)
    for option, value in options.items():
        _check(name, option, value, row.options)
    if row.metric:
        get_metric(row.metric, clamp=clamp)
    found = Regularizer(_text(name, options), row, types.MappingProxyType(options), clamp)
    if options and not row.needs:  # values that cannot be are refused here and not in a run
        shape = (1, 1, 2, 2) if row.looks_at == KERNEL else (2, 2)
        jax.eval_shape(found, jax.ShapeDtypeStruct(shape, "float32"))
    return found


def _of_name(name: str) -> Row:
    metric = get_metric(name)
    source = "DH²L, " + metric.equation if name in METRICS else metric.equation
    return _mean(name, metric.symbol, source, f"mean {metric.symbol}")


def _check(name: str, option: str, value: Any, options: Mapping[str, Any]) -> None:
    if option not in options:
        raise ValueError(f"regulariser {name}: {unknown_name('option', option, options)}")
    default, number = options[option], (int, float)
    numbers = type(value) in number and type(default) in number
    if default is not None and type(value) is not type(default) and not numbers:
        raise ValueError(
            f"regulariser {name}: {option} must be like its default, {default!r}, found {value!r}"
        )


def mean_of(regularizer: object) -> tuple[Metric, bool] | None:
    """(metric, half_space) of what is a mean over pairs, as the sums over pairs take it, or None.

    >>> mean_of(regularizer("cosine")) == (get_metric("cosine"), False), mean_of(len)
    (True, None)
    """
    if isinstance(regularizer, Metric):
        return regularizer, False
    if not isinstance(regularizer, Regularizer) or regularizer.row.reduction != "mean":
        return None
    options = dict(regularizer.options)
    half_space = options.pop("half_space", False)
    text = _with_options(regularizer.row.metric, options)
    return get_metric(text, clamp=regularizer.clamp), half_space
