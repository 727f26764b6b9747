"""How fast episodes are made, and which share of a training step that is: one JSON object a line.

    python -m benchmarks.episodes [--only=synthesis,superpixel,augmentation,ideas,kinds,share,host] [--repeats=7]

`ideas` times what was done beside what was not, in turn, for 17 images of 128 pixels. `kinds` is the price of one step
that serves every kind: a batch of one kind made by the program of that kind alone and by the program of all three.
`share` times the model's gradient and the making of its episode in turn, so that a busy machine slows both. `host` does
the in-task operations also with albumentations, on one core, if that is installed; for ours on one core too, start it
under `taskset -c 0`. A line tells the cores it had and the machine's load average.
"""

import argparse
import functools
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from universeg_jax.configs import default
from universeg_jax.episode import Episode, split_query
from universeg_jax.episodes import augment, superpixel, synthesis, warp
from universeg_jax.episodes.on_device import device_episodes
from universeg_jax.episodes.sampler import KINDS, Batch
from universeg_jax.model.universeg import UniverSeg
from universeg_jax.training.losses import soft_dice

BATCH = 8  # episodes a call, one after another on a CPU as in training


def report(name: str, seconds: list[float], amount: float, unit: str) -> None:
    """Prints `amount` per median second."""
    line = {"name": name, "median": round(amount / float(np.median(seconds)), 2), "unit": unit}
    emit(line | {"best": round(amount / min(seconds), 2)})


def emit(line: dict) -> None:
    """Prints a line with where it was measured."""
    where = {"load": round(os.getloadavg()[0], 1), "device": jax.devices()[0].device_kind}
    where |= {"cores": len(os.sched_getaffinity(0)), "jax": jax.__version__}
    where["command"] = " ".join(["python -m benchmarks.episodes", *sys.argv[1:]])
    print(json.dumps(line | where), flush=True)


def times(functions: list[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of each function, called in turn."""
    for function in functions:
        jax.block_until_ready(function())
    seconds = [[] for _ in functions]
    for _ in range(repeats):
        for function, taken in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            taken.append(time.perf_counter() - start)
    return seconds


def over_batch(function: Callable) -> Callable:
    """As in training: one episode after another on a CPU, else vmapped."""
    if jax.default_backend() == "cpu":
        return jax.jit(lambda *xs: jax.lax.map(lambda x: function(*x), xs))
    return jax.jit(jax.vmap(function))


def makers(size: int, support_size: int) -> tuple[jax.Array, Callable, Callable]:
    """Keys, keys → synthetic episodes, and (keys, episodes) → augmented episodes."""
    drawn, changed = synthesis.get_config(), augment.get_config()
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), i))(jnp.arange(BATCH))
    synthesise = over_batch(lambda key: synthesis.synthetic_episode(key, size, support_size, drawn))
    change = over_batch(lambda key, episode: augment.augment_episode(key, episode, changed))
    return keys, synthesise, change


def superpixels(size: int, support_size: int, repeats: int) -> None:
    """Episodes a second from images that a synthetic task made."""
    config = superpixel.get_config()
    keys, synthesise, _ = makers(size, 1)
    images = synthesise(keys).query_image[..., 0]

    def label(key, image):
        levels = superpixel.smoothed_levels(image)
        return superpixel.choose_label(key, superpixel.superpixels(key, levels, config), levels, config)

    find = over_batch(label)
    make = over_batch(lambda key, image: superpixel.superpixel_episode(key, image, support_size, config))
    found, made = times([lambda: find(keys, images), lambda: make(keys, images)], repeats)
    report(f"superpixels, the label alone, {size}px", found, BATCH, "episodes/s")
    report(f"superpixels, S={support_size} {size}px", made, BATCH, "episodes/s")


def ideas(size: int, count: int, repeats: int) -> None:
    """Each way to do a thing, in turn: milliseconds for `count` images."""
    key = jax.random.key(0, impl="threefry2x32")
    image, velocity = jax.random.uniform(key, (count, size, size)), jax.random.normal(key, (count, 2, 8, 8))
    label = (image > 0.5).astype(jnp.float32)
    flow, half = warp.resize_aligned(velocity, size), warp.resize_aligned(velocity, size // 2)
    at = flow * 3 + warp.grid(size)[None]
    sigma = jnp.full(count, 1.5)

    def one_gather(image, label, at):
        return warp.map_each(lambda *x: warp.sample_image_and_label(*x, nearest=False), image, label, at)

    def two_gathers(image, label, at):
        read = lambda image, label, at: [warp.sample(x[..., None], at)[..., 0] for x in (image, label)]  # noqa: E731
        moved, marked = warp.map_each(read, image, label, at)
        return moved, marked >= 0.5

    def direct_blur(x, sigma):
        place = jnp.arange(-6, 7)
        weights = jnp.exp(-0.5 * jnp.square(place / sigma[:, None]))
        kernel = weights[:, :, None] * weights[:, None]
        kernel /= kernel.sum((1, 2), keepdims=True)
        return jax.lax.conv_general_dilated(x[None], kernel[:, None], (1, 1), "SAME", feature_group_count=len(x))

    def coarse_elastic(keys):
        draw = jax.vmap(lambda k: warp.elastic(k, size, jnp.float32(2), jnp.float32(7.5), (6.0, 8.0)))
        return jax.vmap(warp.separable)(*draw(keys))

    def fine_elastic(keys):
        noise = jax.vmap(lambda k: jax.random.uniform(k, (2, size, size), minval=-1))(keys)
        return warp.blur(noise, jnp.float32(7.5 * size / 128)) * size

    keys = jax.random.split(key, count)
    pairs = {
        "image and label from one gather": (one_gather, (image, label, at)),
        "image and label from two gathers": (two_gathers, (image, label, at)),
        "5 squarings at half size": (lambda v: warp.resize_displacement(warp.integrate(v, 5), size), (half,)),
        "3 squarings at half size": (lambda v: warp.resize_displacement(warp.integrate(v, 3), size), (half,)),
        "5 squarings at full size": (lambda v: warp.integrate(v, 5), (flow,)),
        "blur by two matrix products": (warp.blur, (image, sigma)),
        "blur by a convolution of 13x13": (direct_blur, (image, sigma)),
        "elastic field on coarse nodes": (coarse_elastic, (keys,)),
        "elastic field from a noise a pixel": (fine_elastic, (keys,)),
    }
    runs = [functools.partial(jax.jit(f), *xs) for f, xs in pairs.values()]
    for name, seconds in zip(pairs, times(runs, repeats), strict=True):
        line = {"name": f"{name}, {count} images of {size}px", "median": round(1e3 * float(np.median(seconds)), 2)}
        emit(line | {"unit": "ms", "best": round(1e3 * min(seconds), 2)})


def kinds(size: int, support_size: int, repeats: int) -> None:
    """Batches of one kind by the program of that kind alone and by that of all kinds, augmentation included."""
    config = default.get_config()
    config.image_size, config.support_size = size, support_size
    shape = (BATCH, support_size + 1, size, size, 1)
    pictures = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    labels = (pictures > 99).astype(np.uint8)
    raw = split_query(pictures, labels)

    def program(weights):
        config.kinds.update(weights)
        return jax.jit(functools.partial(device_episodes, config=config.copy_and_resolve_references()))

    every = program(dict.fromkeys(KINDS, 1.0))
    for place, kind in enumerate(KINDS):
        batch = Batch(np.arange(BATCH, dtype=np.uint32), np.full(BATCH, place, np.uint8), np.zeros(BATCH), raw)
        alone = program(dict.fromkeys(KINDS, 0.0) | {kind: 1.0})
        one, all_ = times([lambda: alone(batch), lambda: every(batch)], repeats)  # noqa: B023
        report(f"{kind} batch by its own program, S={support_size} {size}px", one, BATCH, "episodes/s")
        report(f"{kind} batch by the program of all kinds, S={support_size} {size}px", all_, BATCH, "episodes/s")


def share(size: int, support_size: int, features: int, dtype: str, repeats: int) -> None:
    """The making of episodes as a share of it and the model's gradient."""
    keys, synthesise, change = makers(size, support_size)
    model = UniverSeg((features,) * 4, dtype=dtype, support_chunk=0)  # its gradient is slow entry by entry
    episodes: Episode = synthesise(keys)
    one = jax.tree.map(lambda x: x[:1], episodes)
    params = jax.jit(model.init)(jax.random.key(0), one.query_image, *one[2:])

    def loss(params, episode):
        return soft_dice(model.apply(params, episode.query_image, *episode[2:]), episode.query_label).mean()

    gradient = jax.jit(jax.grad(loss))
    runs = [lambda: gradient(params, one), lambda: synthesise(keys), lambda: change(keys, episodes)]
    step, made, changed = (float(np.median(t)) for t in times(runs, repeats))
    name = f"S={support_size} {size}px {features} features {dtype}"
    made, changed = made / BATCH, changed / BATCH
    for what, part in (("synthesis", made), ("augmentation", changed), ("both", made + changed)):
        report(f"share of a step, {what}, {name}", [1.0], 100 * part / (step + made + changed), "%")
    report(f"gradient, {name}", [1.0], step * 1e3, "ms")


def host(size: int, repeats: int) -> None:
    """Images a second through the in-task operations, by this package and by albumentations in turn."""
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)

    library = A.Compose(
        [
            A.Affine(rotate=(0, 360), translate_percent=(-0.2, 0.2), scale=(0.8, 1.1), p=0.5),
            A.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.5, p=0.25),
            A.GaussianBlur(blur_limit=(5, 5), sigma_limit=(0.1, 1.1), p=0.25),
            A.GaussNoise(std_range=(0.0, 0.22), p=0.25),
            A.Sharpen(p=0.25),
            A.ElasticTransform(alpha=128 * size / 128, sigma=7.5 * size / 128, p=0.8),  # 2.8 px of 128
        ]
    )
    config = augment.get_config()
    for op in config.task:
        config.task[op].p = 0.0
    keys, synthesise, _ = makers(size, 16)
    episodes = synthesise(keys)
    change = over_batch(lambda key, episode: augment.augment_episode(key, episode, config))
    images = np.asarray(episodes.support_images)[:, :8].reshape(-1, size, size, 1)
    labels = np.asarray(episodes.support_labels)[:, :8].reshape(-1, size, size).astype(np.uint8)

    def by_library():
        return [library(image=image, mask=label) for image, label in zip(images, labels, strict=True)]

    ours, theirs = times([lambda: change(keys, episodes), by_library], repeats)
    report(f"in-task augmentation, {size}px", ours, BATCH * 17, "images/s")
    report(f"the same by albumentations {A.__version__}, {size}px, one core", theirs, len(images), "images/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="synthesis,superpixel,augmentation,ideas,kinds,share,host")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    only, repeats = arguments.only.split(","), arguments.repeats
    accelerator = jax.default_backend() != "cpu"
    for size, support_size in ((64, 16), (128, 16)) if set(only) & {"synthesis", "superpixel", "augmentation"} else ():
        keys, synthesise, change = makers(size, support_size)
        name = f"S={support_size} {size}px"
        if "synthesis" in only:
            report(f"synthesis, {name}", times([lambda: synthesise(keys)], repeats)[0], BATCH, "episodes/s")  # noqa: B023
        if "augmentation" in only:
            episodes = synthesise(keys)
            seconds = times([lambda: change(keys, episodes)], repeats)[0]  # noqa: B023
            report(f"augmentation, {name}", seconds, BATCH, "episodes/s")
            report(f"augmentation, {name}", seconds, BATCH * (support_size + 1), "images/s")
        if "superpixel" in only:
            superpixels(size, support_size, repeats)
    if "ideas" in only:
        ideas(128, 17, repeats)
    if "kinds" in only:
        kinds(64, 8, repeats)
    if "share" in only:
        share(128, 16, 64, "float32", repeats)
        share(64, 8, 32, "float32", repeats)
        if accelerator:
            share(128, 64, 64, "bfloat16", repeats)
    if "host" in only and importlib.util.find_spec("albumentations"):
        host(128, repeats)


if __name__ == "__main__":
    main()
