"use strict";
// Means, deviations and gains over the picked seeds; for all seeds the page holds the numbers of its own statistics.
const numbers = {
  mean(values) { return values.reduce((sum, value) => sum + value, 0) / values.length; },

  // Standard deviation with divisor n - 1; NaN for fewer than two values.
  deviation(values) {
    if (values.length < 2) return NaN;
    const mean = numbers.mean(values);
    return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1));
  },

  // "72.31 ± 0.25", as in the tables; a dash without values.
  plusMinus(values) {
    if (!values.length) return "–";
    const mean = numbers.mean(values).toFixed(2), deviation = numbers.deviation(values);
    return Number.isNaN(deviation) ? mean : `${mean} ± ${deviation.toFixed(2)}`;
  },

  // The paired gain of one {seed: result} over another with Student's interval. `critical` holds the quantiles of t by
  // degrees of freedom; low and high are null where nothing can be tested, and seeds is 0 without a common seed.
  gain(mine, theirs, critical) {
    const seeds = Object.keys(mine).filter(seed => seed in theirs);
    if (!seeds.length) {
      const mean = numbers.mean(Object.values(mine)) - numbers.mean(Object.values(theirs));
      return {mean, low: null, high: null, seeds: 0};
    }
    const differences = seeds.map(seed => mine[seed] - theirs[seed]), mean = numbers.mean(differences);
    const error = numbers.deviation(differences) / Math.sqrt(seeds.length);
    if (!(error > 1e-9)) return {mean, low: null, high: null, seeds: seeds.length};
    const margin = critical[seeds.length - 1] * error;
    return {mean, low: mean - margin, high: mean + margin, seeds: seeds.length};
  },
};
