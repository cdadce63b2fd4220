// Colours of parts: the device's are blue, the host's gold, and red is time in which the device waits.

const LIGHT = {
  forward: "#2f62cc", sample: "#7ea3ee", receive: "#cdbf9f", schedule: "#b57908", "write plan": "#dcae51",
  doorbell: "#f0d28d", "fetch plan": "#e0ba6a", "input prep": "#c9902a", "result write": "#9a6b12",
  confirm: "#8a5a0c", detokenise: "#d79a2b", send: "#a88752", other: "#c4a265",
  gap: "#cf3b2e", ink: "#1d2230", soft: "#626878", line: "#ebe8df", onBlue: "#ffffff", paper: "#ffffff",
};

const DARK = {
  forward: "#3c6fd6", sample: "#86a9f3", receive: "#6f6655", schedule: "#e3ac45", "write plan": "#b98a35",
  doorbell: "#8a6c33", "fetch plan": "#a8843f", "input prep": "#cf9a3c", "result write": "#f0c878",
  confirm: "#f3cf8a", detokenise: "#d99a26", send: "#9c8256", other: "#b39a68",
  gap: "#f0695c", ink: "#e7e6e1", soft: "#979dab", line: "#252a35", onBlue: "#ffffff", paper: "#181c25",
};

const dark = matchMedia("(prefers-color-scheme: dark)");

export function palette() {
  return dark.matches ? DARK : LIGHT;
}

/** A part's, by its name. */
export function colourOf(part) {
  return palette()[part] ?? palette().other;
}

/** Calls back when the scheme changes. */
export function onScheme(callback) {
  dark.addEventListener("change", callback);
}

export function sized(canvas) {
  const scale = devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/** Microseconds, readably. */
export function duration(us) {
  if (us >= 1e6) return `${(us / 1e6).toFixed(us >= 1e7 ? 0 : 1)} s`;
  if (us >= 1e3) return `${(us / 1e3).toFixed(us >= 1e5 ? 0 : us >= 1e4 ? 1 : 2)} ms`;
  return `${us.toFixed(us >= 10 ? 0 : 1)} µs`;
}
