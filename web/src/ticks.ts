// Where the lines of a scale stand, and how many decimals its numbers need.

/** Decimals with which multiples of a step differ from one another. */
const decimalsOf = (step: number): number => Math.min(9, Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)));

/** Decimals that show about a hundredth of a span. */
export const decimalsFor = (span: number): number => (span > 0 ? Math.min(6, Math.max(0, Math.round(2 - Math.log10(span)))) : 2);

export const signed = (value: number, digits: number): string => {
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : `${value < 0 ? "−" : "+"}${text}`;
};

/** Return round values from `low` to `high`, at least two, at most `most`, and the decimals that tell them apart. */
export function niceTicks(low: number, high: number, most: number, isWhole = false): { values: number[]; digits: number } {
  const span = high - low;
  const steps: number[] = [];
  for (let power = Math.floor(Math.log10(span)) - 2; power <= Math.log10(span); power++) {
    for (const one of [1, 2, 5]) steps.push(one * 10 ** power);
  }
  const count = (step: number) => Math.floor(high / step + 1e-9) - Math.ceil(low / step - 1e-9) + 1;
  const fine = steps.filter((step) => count(step) >= 2 && (!isWhole || step >= 1));
  const step = fine.find((one) => count(one) <= most) ?? fine.at(-1);
  if (!step) return { values: [low, high], digits: decimalsFor(span) };
  const first = Math.ceil(low / step - 1e-9);
  return { values: Array.from({ length: count(step) }, (_, i) => (first + i) * step), digits: decimalsOf(step) };
}
