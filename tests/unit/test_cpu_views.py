"""The view algebra of the CPU target against numpy's strides, and the memory plan."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from qcc_targets.cpu import views
from qcc_targets.cpu.kernel import ALIGN, SLACK, Halo, View
from qcc_targets.cpu.memory import Block, arrange

DIMS = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=5)


def place(view: View) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """A storage for ``view``, and the tensor that lies in it, numbered in logical order."""
    storage = np.full(views.extent(view), -1, np.int16)
    tensor = look(storage, view)
    tensor[...] = np.arange(view.size).reshape(view.shape)
    return storage, tensor


def look(storage: NDArray[np.int16], view: View) -> NDArray[np.int16]:
    return as_strided(storage[view.offset :], view.shape, [2 * s for s in view.strides])


@settings(deadline=None)
@given(DIMS, st.data())
def test_views_follow_numpy(dims: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(dims))))
    view = views.dense("i16", dims, order)
    storage, tensor = place(view)

    perm = data.draw(st.permutations(range(len(dims))))
    turned = views.transposed(view, perm)
    assert np.array_equal(look(storage, turned), tensor.transpose(perm))

    axis = data.draw(st.integers(0, len(dims) - 1))
    start = data.draw(st.integers(0, dims[axis] - 1))
    stop = data.draw(st.integers(start + 1, dims[axis]))
    step = data.draw(st.integers(1, 3))
    part = views.sliced(view, axis, start, stop, step)
    index = (slice(None),) * axis + (slice(start, stop, step),)
    assert np.array_equal(look(storage, part), tensor[index])

    shape = data.draw(factorizations(part.size))
    if (other := views.reshaped(part, shape)) is not None:
        assert np.array_equal(look(storage, other), tensor[index].reshape(shape))


@st.composite
def factorizations(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    dims: list[int] = []
    while size > 1 and len(dims) < 4:
        dims.append(draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0])))
        size //= dims[-1]
    return (*dims, size)


@settings(deadline=None)
@given(DIMS, st.data())
def test_a_dense_tensor_takes_every_shape(dims: list[int], data: st.DataObject) -> None:
    view = views.logical("i16", dims)
    shape = data.draw(factorizations(view.size))
    assert views.reshaped(view, shape) is not None


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_a_refinement_splits_both_shapes(size: int, data: st.DataObject) -> None:
    a, b = data.draw(factorizations(size)), data.draw(factorizations(size))
    common = views.refinement(a, b)
    if common is not None:
        assert math.prod(common) == size
        for shape in (a, b):
            order = data.draw(st.permutations(range(len(shape))))
            assert views.reshaped(views.dense("u8", shape, order), common) is not None


def test_a_halo_lies_around_every_plane() -> None:
    view = views.dense("u8", (2, 3, 4, 5), views.CHANNELS_LAST, halo=Halo(1, 2, 3, 1), fill=7)
    assert view.pixel_stride == 3 and view.row_stride == (2 + 5 + 1) * 3
    assert view.offset % ALIGN == 0 and view.sample_stride % ALIGN == 0
    assert view.offset >= 1 * view.row_stride + 2 * view.pixel_stride
    assert view.sample_stride >= (1 + 4 + 3) * view.row_stride
    assert views.extent(view) == view.index(1, 2, 6, 5) + 1


def test_channel_slices_keep_the_halo_and_others_lose_it() -> None:
    view = views.dense("u8", (1, 8, 4, 5), views.CHANNELS_LAST, halo=Halo(1, 1, 1, 1))
    assert views.sliced(view, 1, 2, 6).halo == view.halo
    assert not views.sliced(view, 2, 1, 3).halo
    assert not views.transposed(view, (0, 1, 3, 2)).halo


BLOCKS = st.lists(
    st.builds(lambda s, a, n: Block(s, a, a + n), st.integers(0, 500), st.integers(0, 9), st.integers(0, 5))
)


@settings(deadline=None)
@given(BLOCKS)
def test_blocks_that_live_together_never_overlap(blocks: list[Block]) -> None:
    offsets, size = arrange(blocks)
    for i, (a, at) in enumerate(zip(blocks, offsets, strict=True)):
        assert at % ALIGN == 0 and at >= SLACK and at + a.size + SLACK <= size
        for b, bt in zip(blocks[:i], offsets[:i], strict=True):
            if a.first <= b.last and b.first <= a.last:
                assert at + a.size <= bt or bt + b.size <= at


def test_blocks_that_live_apart_share_memory() -> None:
    _, size = arrange([Block(1000, step, step) for step in range(10)])
    assert size < 2000 + 2 * SLACK
