// Numbers and times as people read them; "–" for what is not known.

const NOTHING = "–";
const formats = new Map();

function formatter(options) {
  const key = JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.NumberFormat("en-US", options));
  return formats.get(key);
}

const known = (value) => typeof value === "number" && Number.isFinite(value);
const minus = (text) => text.replace("-", "−");

export function fixed(value, digits) {
  if (!known(value)) return NOTHING;
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits, signDisplay: "negative" };
  return minus(formatter(options).format(value));
}

// Up to so many significant digits.
export function number(value, digits = 6) {
  return known(value) ? minus(formatter({ maximumSignificantDigits: digits }).format(value)) : NOTHING;
}

export function whole(value) {
  return known(value) ? minus(formatter({ maximumFractionDigits: 0 }).format(value)) : NOTHING;
}

export function signed(value, digits) {
  if (!known(value)) return NOTHING;
  const text = fixed(value, digits);
  return Number(value.toFixed(digits)) > 0 ? `+${text}` : text;
}

// 0.0123 is "+1.23 %".
export function percent(share, digits = 2) {
  return known(share) ? `${signed(100 * share, digits)} %` : NOTHING;
}

export function milliseconds(value) {
  if (!known(value)) return NOTHING;
  if (value < 1) return `${fixed(value, 2)} ms`;
  if (value < 10) return `${fixed(value, 1)} ms`;
  if (value < 10_000) return `${whole(value)} ms`;
  return duration(value);
}

export function duration(ms) {
  if (!known(ms)) return NOTHING;
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 120) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.round(minutes / 60);
  return hours < 72 ? `${hours} h` : `${whole(hours / 24)} days`;
}

const two = (value) => String(value).padStart(2, "0");

// Times are UTC, or in the viewer's own zone where that was chosen on this page.
let own = false;
export const ownZone = Intl.DateTimeFormat().resolvedOptions().timeZone || "local time";

export function isOwnZone() {
  return own;
}

export function useOwnZone(yes) {
  own = yes;
}

// "UTC", or "Europe/Berlin (UTC+01:00)" with what holds at that time.
export function zone(ms) {
  if (!own) return "UTC";
  const minutes = -new Date(ms).getTimezoneOffset();
  const [hours, rest] = [Math.floor(Math.abs(minutes) / 60), Math.abs(minutes) % 60];
  return `${ownZone} (UTC${minutes < 0 ? "−" : "+"}${two(hours)}:${two(rest)})`;
}

// A Date whose UTC fields are the ones to be shown; each time has its own offset (summer time).
function shown(ms) {
  return new Date(own ? ms - 60_000 * new Date(ms).getTimezoneOffset() : ms);
}

export function clock(ms, withSeconds = false) {
  const time = shown(ms);
  const text = `${two(time.getUTCHours())}:${two(time.getUTCMinutes())}`;
  return withSeconds ? `${text}:${two(time.getUTCSeconds())}` : text;
}

export function day(ms) {
  const time = shown(ms);
  return `${time.getUTCFullYear()}-${two(time.getUTCMonth() + 1)}-${two(time.getUTCDate())}`;
}

// "2025-12-31 12:15"
export function moment(ms, withSeconds = false) {
  return known(ms) ? `${day(ms)} ${clock(ms, withSeconds)}` : NOTHING;
}

// "12:15", with the day only where it is another than that of `now`.
export function short(ms, now) {
  return day(ms) === day(now) ? clock(ms) : `${day(ms).slice(5)} ${clock(ms)}`;
}

// How many decimals the prices of a market have, from the prices themselves.
export function priceDigits(prices) {
  let digits = 2;
  for (const price of prices) {
    if (!known(price)) continue;
    const [, fraction = ""] = String(price).split(".");
    if (!fraction.includes("e")) digits = Math.max(digits, fraction.length);
  }
  return Math.min(digits, 8);
}
