"""Attention with a state instead of a cache, on TensorFlow tensors: recurrent, chunk by chunk, and one step.

The recurrence, per head, with a state S of [features_in, features] that starts at 0 (Yang et al. 2023, "Gated Linear
Attention", arXiv 2312.06635, section 4):

    S_t = diag(exp(log_decay_t)) S_{t-1} + k_t^T v_t        o_t = q_t S_t

Everything here is float32, whatever the precision of the model. `log_decay` is at most 0; None stands for 0, an
undecayed sum. Names of axes: b batch, h heads, n chunks, t tokens of a chunk, i features_in, f features.
"""

from __future__ import annotations

from typing import Optional

from gpt_neo.mtf_compat import tf

CHUNK = 64  # tokens that attend to each other directly; one state is formed per chunk


def advance(
    q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, log_decay: Optional[tf.Tensor], state: Optional[tf.Tensor]
) -> tuple:
    """Read new tokens, one or several. Arguments and results as `chunkwise`."""
    if q.shape[1] > 1 or state is None:
        return chunkwise(q, k, v, log_decay, state)
    out, state = step(q[:, 0], k[:, 0], v[:, 0], None if log_decay is None else log_decay[:, 0], state)
    return out[:, tf.newaxis], state


def step(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, log_decay: Optional[tf.Tensor], state: tf.Tensor) -> tuple:
    """One token: q, k, log_decay of [b, h, i], v [b, h, f], state [b, h, i, f]. Returns (o [b, h, f], new state)."""
    if log_decay is not None:
        state *= tf.exp(log_decay)[..., tf.newaxis]
    state += k[..., tf.newaxis] * v[..., tf.newaxis, :]
    return tf.einsum("bhi,bhif->bhf", q, state), state


def recurrent(
    q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, log_decay: Optional[tf.Tensor] = None, state: Optional[tf.Tensor] = None
) -> tuple:
    """The definition, token after token. Arguments and results as `chunkwise`."""
    if state is None:
        state = tf.zeros([q.shape[0], q.shape[2], q.shape[3], v.shape[3]], q.dtype)
    outputs = []
    for t in range(q.shape[1]):
        out, state = step(q[:, t], k[:, t], v[:, t], None if log_decay is None else log_decay[:, t], state)
        outputs.append(out)
    return tf.stack(outputs, 1), state


def chunkwise(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    log_decay: Optional[tf.Tensor] = None,
    state: Optional[tf.Tensor] = None,
    chunk: int = CHUNK,
) -> tuple:
    """The same numbers in parallel: matrix products inside chunks, one state per chunk in between.

    Every exponent is a sum of log_decay over tokens between two others, so at most 0: nothing overflows however fast
    the state decays.

    Args:
      q, k, log_decay: float32 [batch, sequence, heads, features_in].
      v: float32 [batch, sequence, heads, features].
      state: float32 [batch, heads, features_in, features] left by earlier tokens, None at the start.
      chunk: tokens per chunk; the next power of two is taken.

    Returns:
      (o [batch, sequence, heads, features], the state after the last token)
    """
    length = q.shape[1]
    chunk = 1 << (min(chunk, length) - 1).bit_length()
    q, k, v = (cut(x, chunk) for x in (q, k, v))
    if log_decay is None:
        total = None
        scores = causal(tf.matmul(q, k, transpose_b=True))
    else:
        passed = tf.cumsum(cut(log_decay, chunk), 3)  # from the start of the chunk to a token, itself included
        total = passed[..., -1, :]
        scores = decayed_scores(q, k, passed)
        k *= tf.exp(total[..., tf.newaxis, :] - passed)
        q *= tf.exp(passed)
    added = tf.matmul(k, v, transpose_a=True)
    if state is None:
        state = tf.zeros_like(added[:, :, 0])
    before, last = carry(added, total, state)
    out = tf.matmul(scores, v) + tf.matmul(q, before)
    out = tf.reshape(tf.transpose(out, [0, 2, 3, 1, 4]), [out.shape[0], -1, out.shape[1], out.shape[4]])
    return out[:, :length], last


def cut(x: tf.Tensor, chunk: int) -> tf.Tensor:
    """[b, sequence, h, f] -> [b, h, n, chunk, f], filled up with zeros, which leave the state as it is."""
    batch, length, heads, features = x.shape.as_list()
    count = -(-length // chunk)
    x = tf.pad(x, [[0, 0], [0, count * chunk - length], [0, 0], [0, 0]])
    return tf.transpose(tf.reshape(x, [batch, count, chunk, heads, features]), [0, 3, 1, 2, 4])


def causal(scores: tf.Tensor) -> tf.Tensor:
    """Scores [..., t, t] with 0 where the column is later than the row."""
    tokens = tf.range(scores.shape[-1])
    return tf.where_v2(tokens[:, tf.newaxis] >= tokens, scores, 0.0)


def decayed_scores(q: tf.Tensor, k: tf.Tensor, passed: tf.Tensor) -> tf.Tensor:
    """Scores sum_i q_ti k_ui exp(passed_ti - passed_ui) for u <= t, and 0 for later u.

    exp(-passed_u) alone may overflow. So the tokens are halved again and again: queries of the second half and keys of
    the first are brought to the border between them, by two exponents of at most 0.

    Args:
      q, k, passed: [..., t, i], t a power of two; passed falls along t.

    Returns:
      [..., t, t]
    """
    *outer, size, features = q.shape.as_list()
    if size == 1:
        return tf.reduce_sum(q * k, -1, keepdims=True)
    half = size // 2
    border = passed[..., half - 1 : half, :]
    queries = q[..., half:, :] * tf.exp(passed[..., half:, :] - border)
    keys = k[..., :half, :] * tf.exp(border - passed[..., :half, :])
    across = tf.matmul(queries, keys, transpose_b=True)
    # Both halves at once; the outer axes are merged, since TensorFlow slices at most eight.
    inside = decayed_scores(*(tf.reshape(x, [-1, half, features]) for x in (q, k, passed)))
    inside = tf.reshape(inside, [*outer, 2, half, half])
    upper = tf.concat([inside[..., 0, :, :], tf.zeros_like(across)], -1)
    lower = tf.concat([across, inside[..., 1, :, :]], -1)
    return tf.concat([upper, lower], -2)


def carry(added: tf.Tensor, total: Optional[tf.Tensor], state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """States between chunks: S_n = exp(total_n) S_{n-1} + added_n.

    Args:
      added: [b, h, n, i, f].
      total: [b, h, n, i], None for no decay.
      state: [b, h, i, f] before the first chunk.

    Returns:
      (the states before each chunk, of the shape of added; the state after the last)
    """
    first = state if total is None else state * tf.exp(total[:, :, 0])[..., tf.newaxis]
    added = tf.concat([(added[:, :, 0] + first)[:, :, tf.newaxis], added[:, :, 1:]], 2)
    after = decaying_sum(added, total)
    return tf.concat([state[:, :, tf.newaxis], after[:, :, :-1]], 2), after[:, :, -1]


def decaying_sum(added: tf.Tensor, total: Optional[tf.Tensor]) -> tf.Tensor:
    """S_n = exp(total_n) S_{n-1} + added_n from S = 0, for all n. Shapes as in `carry`.

    The gradient is the same sum from the other end, and keeps nothing but S.
    """
    if total is None:
        return doubling(added, None)

    @tf.custom_gradient
    def run(added: tf.Tensor, total: tf.Tensor) -> tuple:
        states = doubling(added, total)

        def gradient(grad: tf.Tensor) -> tuple:
            following = tf.concat([total[:, :, 1:], tf.zeros_like(total[:, :, :1])], 2)
            reverse = doubling(tf.reverse(grad, [2]), tf.reverse(following, [2]))
            grad_added = tf.reverse(reverse, [2])
            grad_total = tf.exp(total) * tf.reduce_sum(grad_added * delay(states, 1), -1)
            return grad_added, grad_total

        return states, gradient

    return run(added, total)


def doubling(added: tf.Tensor, total: Optional[tf.Tensor]) -> tf.Tensor:
    """`decaying_sum` in log2(n) steps (Hillis and Steele 1986): after each, a state holds twice as many chunks."""
    shift = 1
    while shift < added.shape[2]:
        earlier = delay(added, shift)
        if total is not None:
            earlier *= tf.exp(total)[..., tf.newaxis]
            total += delay(total, shift)
        added += earlier
        shift *= 2
    return added


def delay(x: tf.Tensor, count: int) -> tf.Tensor:
    """Move along axis 2 by `count`, zeros first."""
    return tf.pad(x[:, :, :-count], [[0, 0], [0, 0], [count, 0]] + [[0, 0]] * (len(x.shape) - 3))
