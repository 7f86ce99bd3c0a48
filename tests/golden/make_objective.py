#!/usr/bin/env python3
"""Draws of the FLUX.1 objective, by its formulas alone.

    python make_objective.py OUTFILE        (normally tests/golden/objective/draws.txt)

One line per draw: "YAML of section objective | seed sample tokens | sigma weight guidance dropped noise0 noise5".
Philox4x32-10, Box-Muller and all distributions are written here from their definitions with Python's integers and
math module; nothing is taken from the program. Beta draws are order statistics, counted by sorting. Python 3.11.
"""
import math
import sys

MASK = 0xFFFFFFFF
SIGMA, NOISE, GUIDANCE, CAPTION = 6, 7, 8, 9


def philox(counter, key):
    """Ten rounds of Salmon et al. (2011), table 2."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def words(seed, purpose, sample, quad):
    counter = [quad & MASK, quad >> 32, sample & MASK, purpose << 24 | sample >> 32]
    return philox(counter, [seed & MASK, seed >> 32])


def uniform(seed, purpose, sample, element=0):
    return (words(seed, purpose, sample, element // 4)[element % 4] + 0.5) / 2 ** 32


def normal(seed, purpose, sample, element=0):
    pair = element % 4 // 2 * 2
    w = words(seed, purpose, sample, element // 4)
    radius = math.sqrt(-2 * math.log((w[pair] + 0.5) / 2 ** 32))
    angle = 2 * math.pi * w[pair + 1] / 2 ** 32
    return radius * (math.sin(angle) if element % 2 else math.cos(angle))


def draw_sigma(o, seed, sample, tokens):
    how = o.get("timesteps", "uniform")
    u = uniform(seed, SIGMA, sample)
    if how == "logit-normal":
        x = o.get("logit_mean", 0.0) + o.get("logit_std", 1.0) * normal(seed, SIGMA, sample)
        u = 1 / (1 + math.exp(-x))
    elif how == "sigmoid":
        u = 1 / (1 + math.exp(-o.get("sigmoid_scale", 1.0) * normal(seed, SIGMA, sample)))
    elif how == "beta":
        a, b = o.get("beta_alpha", 2), o.get("beta_beta", 2)
        u = sorted(uniform(seed, SIGMA, sample, i) for i in range(a + b - 1))[a - 1]
    elif how == "mode":
        # Esser et al. (2024): of u' = 1 - u - s (cos^2(pi u / 2) - 1 + u), sigma is 1 - u'
        u = 1 - (1 - u - o.get("mode_scale", 1.29) * (math.cos(math.pi * u / 2) ** 2 - 1 + u))
    elif how == "fast":
        u = ([1.0] * 7 + [0.75, 0.5, 0.25])[int(10 * u)]
    if o.get("levels", 0):
        # a scheduler's table of sigma from 1 down to 1 / N, indexed by the share of it that is passed
        n = o["levels"]
        u = [(n - i) / n for i in range(n)][min(int(n * (1 - u)), n - 1)]
    shift = o.get("shift", "none")
    if shift == "static":
        s = o.get("shift_factor", 3.0)
        u = s * u / (1 + (s - 1) * u)
    elif shift == "auto":
        mu = 0.5 + (tokens - 256) / (4096 - 256) * (1.15 - 0.5)
        u = math.exp(mu) / (math.exp(mu) + (1 / u - 1))  # as pipelines write it
    low, high = o.get("min_timestep", 0.0), o.get("max_timestep", 1000.0)
    return low / 1000 + (high - low) / 1000 * u


def weight(o, sigma):
    how = o.get("weighting", "none")
    if how == "sigma_sqrt":
        return sigma ** -2.0
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma ** 2)) if how == "cosmap" else 1.0


CASES = [{}, {"timesteps": "logit-normal"}, {"timesteps": "logit-normal", "logit_mean": -0.5, "logit_std": 1.5},
         {"timesteps": "sigmoid", "sigmoid_scale": 1.3, "shift": "static", "shift_factor": 3.1582},
         {"timesteps": "sigmoid", "shift": "auto"}, {"timesteps": "beta"},
         {"timesteps": "beta", "beta_alpha": 5, "beta_beta": 3, "weighting": "cosmap"}, {"timesteps": "mode"},
         {"timesteps": "mode", "mode_scale": -0.7, "levels": 1000, "weighting": "sigma_sqrt"},
         {"timesteps": "fast", "guidance": 3.5}, {"levels": 4, "caption_dropout": 0.5},
         {"levels": 1000, "shift": "static", "weighting": "cosmap"},
         {"min_timestep": 200.0, "max_timestep": 900.0, "guidance_mode": "uniform", "caption_dropout": 0.1},
         {"guidance_mode": "uniform", "guidance_min": 1.0, "guidance_max": 3.0, "shift": "auto"}]
DRAWS = [(0, 0, 1024), (7, 1, 4096), (7, 2, 256), (2 ** 40 + 3, 2 ** 33 + 5, 2304), (1, 123456, 4032)]


def main(path):
    with open(path, "w", encoding="utf-8") as out:
        for o in CASES:
            yaml = ", ".join(f"{key}: {value}" for key, value in o.items())
            for seed, sample, tokens in DRAWS:
                sigma = draw_sigma(o, seed, sample, tokens)
                guidance = o.get("guidance", 1.0)
                if o.get("guidance_mode") == "uniform":
                    low, high = o.get("guidance_min", 0.0), o.get("guidance_max", 4.0)
                    guidance = low + (high - low) * uniform(seed, GUIDANCE, sample)
                dropped = uniform(seed, CAPTION, sample) < o.get("caption_dropout", 0.0)
                numbers = [sigma, weight(o, sigma), guidance, int(dropped)]
                numbers += [normal(seed, NOISE, sample, i) for i in (0, 5)]
                out.write(f"{{{yaml}}} | {seed} {sample} {tokens} | " + " ".join(repr(x) for x in numbers) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
