"""What the benchmark of accelerators reads off a compiled program."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks.platforms import PLATFORMS
from benchmarks.programs import Counts, count

# A fusion in a loop that slices four rows of x and writes a row of y in place, for three turns;
# beside it two products by library calls, one of them a convolution's gradient, and an exchange.
GPU = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (x: f32[100,8], y: f32[50,8], i: s32[]) -> f32[50,8] {
  %x = f32[100,8]{1,0} parameter(0)
  %y = f32[50,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %rows = f32[4,8]{1,0} dynamic-slice(%x, %i, %zero), dynamic_slice_sizes={4,8}
  %nothing = f32[] constant(0)
  %row = f32[8]{0} reduce(%rows, %nothing), dimensions={0}, to_apply=%add
  %update = f32[1,8]{1,0} bitcast(%row)
  ROOT %written = f32[50,8]{1,0} dynamic-update-slice(%y, %update, %i, %zero)
}

%body (state: (s32[], f32[100,8], f32[50,8])) -> (s32[], f32[100,8], f32[50,8]) {
  %state = (s32[], f32[100,8]{1,0}, f32[50,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%state), index=0
  %x.1 = f32[100,8]{1,0} get-tuple-element(%state), index=1
  %y.1 = f32[50,8]{1,0} get-tuple-element(%state), index=2
  %next = f32[50,8]{1,0} fusion(%x.1, %y.1, %j), kind=kInput, calls=%fused
  %one = s32[] constant(1)
  %k = s32[] add(%j, %one)
  ROOT %out = (s32[], f32[100,8]{1,0}, f32[50,8]{1,0}) tuple(%k, %x.1, %next)
}

%more (state.1: (s32[], f32[100,8], f32[50,8])) -> pred[] {
  %state.1 = (s32[], f32[100,8]{1,0}, f32[50,8]{1,0}) parameter(0)
  %bound = s32[] constant(BOUND)
  %j.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%j.1, %bound), direction=LT
}

ENTRY %main (p: f32[100,8], q: f32[50,8], image: f32[2,4,4,3], slope: f32[2,4,4,5]) -> f32[50,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %q = f32[50,8]{1,0} parameter(1)
  %image = f32[2,4,4,3]{3,2,1,0} parameter(2)
  %slope = f32[2,4,4,5]{3,2,1,0} parameter(3)
  %begin = s32[] constant(2)
  %first = (s32[], f32[100,8]{1,0}, f32[50,8]{1,0}) tuple(%begin, %p, %q)
  %loop = (s32[], f32[100,8]{1,0}, /*index=2*/f32[50,8]{1,0}) while(%first), condition=%more, body=%body
  %last = f32[50,8]{1,0} get-tuple-element(%loop), index=2
  %gram = (f32[50,50]{1,0}, s8[4194304]{0}) custom-call(%last, %last), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
  %kernel = (f32[3,3,3,5]{3,2,1,0}, u8[0]{0}) custom-call(%image, %slope), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %sent = f32[50,8]{1,0} all-reduce-start(%last), replica_groups={{0,1}}, to_apply=%add
  ROOT %received = f32[50,8]{1,0} all-reduce-done(%sent)
}
"""  # noqa: E501

# One row of the image padded by 1 meets 4 + 4 + 4 − 2 entries of a kernel's 3; 2 images, 3×5 maps.
CONVOLUTION = 2 * 2 * 3 * 5 * (4 + 4 + 4 - 2) ** 2
ROWS = 50 * 8 * 4  # bytes


@pytest.mark.parametrize(("bound", "turns"), [("5", 3), ("1", 0)])
def test_the_text_of_a_program(bound, turns):
    in_loop = 4 * 8 * 4 + 4 + 8 * 4 + 3 * 4  # slice, place, row written; the counter
    gram = ROWS + 50 * 50 * 4
    kernel = 4 * (2 * 4 * 4 * 3 + 2 * 4 * 4 * 5 + 3 * 3 * 3 * 5)
    assert count(GPU.replace("BOUND", bound)) == Counts(
        launches=2 * turns + 3,
        flops={"f32": 2 * 50 * 50 * 8 + CONVOLUTION},
        bytes=turns * in_loop + gram + kernel + 2 * ROWS,
        collectives={"all-reduce": (1, ROWS)},
    )


def test_turns_that_the_text_does_not_tell_are_told():
    text = GPU.replace("constant(BOUND)", "add(%j.1, %j.1)")
    found = count(text)
    assert (found.unknown_loops, found.launches) == (1, 2 + 2 + 3)
    known = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"4"}}')
    assert count(known).launches == 4 * 2 + 3


def test_a_tpu_reads_its_vector_memory_for_nothing():
    text = """
ENTRY %main (x: f32[256,128]) -> f32[256,128] {
  %x = f32[256,128]{1,0:T(8,128)} parameter(0)
  %begun = (f32[256,128]{1,0:T(8,128)S(1)}, f32[256,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %near = f32[256,128]{1,0:T(8,128)S(1)} copy-done(%begun)
  %gram = f32[256,256]{1,0:T(8,128)S(1)} convolution(%near, %near), dim_labels=bf_oi->bf, operand_precision={highest,highest}
  ROOT %far = f32[256,128]{1,0:T(8,128)} convolution(%gram, %near), dim_labels=bf_io->bf
}
"""  # noqa: E501
    product = 2 * 256 * 256 * 128
    assert count(text) == Counts(3, {"f32 highest": product, "f32": product}, 2 * 256 * 128 * 4)


def test_a_compiled_loop_of_products():
    product = jax.jit(lambda x: lax.fori_loop(0, 7, lambda i, c: c @ x, x))
    text = product.lower(jax.ShapeDtypeStruct((32, 32), jnp.float32)).compile().as_text()
    found = count(text)
    assert found.flops == {"f32": 7 * 2 * 32**3}
    assert found.unknown_loops == 0
    assert found.launches >= 7


def test_a_compiled_convolution_and_its_gradients():
    def conv(x, k):
        names = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, k, (2, 1), "SAME", dimension_numbers=names)

    shapes = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 9, 8, 3), (3, 3, 3, 5)))
    gradients = jax.grad(lambda x, k: jnp.sum(conv(x, k) ** 2), argnums=(0, 1))
    text = jax.jit(gradients).lower(*shapes).compile().as_text()
    # Rows 9 → 5 by steps of 2, columns 8 → 8, both padded by 1 on each side.
    assert count(text).flops == {"f32": 3 * 2 * 2 * 3 * 5 * (5 * 3 - 2) * (8 * 3 - 2)}


def test_the_roofline():
    v5e = PLATFORMS["v5e"]
    assert v5e.roofline_seconds({"bf16": 197e12, "f32 highest": 197e12}, 1) == pytest.approx(7)
    assert v5e.roofline_seconds({"bf16": 197e12}, 819e10) == pytest.approx(10)


def test_a_compiler_that_is_missing_is_named():
    platform = dataclasses.replace(PLATFORMS["h100"], plugin="no_such_plugins.of_any_device")
    assert "pip install 'dh2l-jax[accelerator]'" in platform.missing()
    assert PLATFORMS["cpu"].missing() == ""
