// What Grafana makes of panels and their data: transformations, overrides, units, colours.
//
//     node grafana_panel.js LIBRARY < jobs.json > results.json
//
// LIBRARY is the folder of @grafana/data, of Grafana 7 or 13. Of a job {panel, frames, labels?}:
// the panel as the dashboard's JSON has it, and its frames as the data source gives them.
"use strict";

// Formats of dates ask the browser for its language, whatever is formatted.
if (!globalThis.navigator) globalThis.navigator = { language: "en-US", languages: ["en-US"] };
const data = require(process.argv[2]);
// Transformations ask the page whether it is one of scenes. Before the library is loaded, a window would
// make others in it look for a document.
globalThis.window ??= globalThis;
const isOld = !data.createTheme; // Grafana 7

// Grafana's user interface tells the library which options there are, and how each is set.
const asItIs = (value) => value;
const standard = {
  displayName: data.displayNameOverrideProcessor ?? data.stringOverrideProcessor,
  unit: data.unitOverrideProcessor,
  min: data.numberOverrideProcessor,
  max: data.numberOverrideProcessor,
  decimals: data.numberOverrideProcessor,
  noValue: data.stringOverrideProcessor,
  thresholds: data.thresholdsOverrideProcessor,
  color: asItIs,
};
const custom = ["width", "minWidth", "align", "displayMode", "cellOptions", "drawStyle", "lineStyle"];
const options = [
  ...Object.entries(standard).map(([id, process]) => ({ id, path: id, process })),
  ...custom.map((id) => ({
    id: `custom.${id}`, path: id, isCustom: true, process: asItIs,
  })),
].map((option) => ({ name: option.id, shouldApply: () => true, settings: {}, ...option }));
const fieldConfigRegistry = new data.FieldConfigOptionsRegistry(() => options);
const transformers = new Map(Object.values(data.standardTransformers).map((each) => [each.id, each]));
data.standardTransformersRegistry.setInit(() =>
  [...transformers.values()].map((each) => ({
    id: each.id, name: each.name, transformation: isOld ? each : async () => each,
  }))
);
const theme = isOld
  ? { type: "dark", isDark: true, colors: { panelBg: "#141619" }, palette: {} }
  : data.createTheme();

function replaceVariables(text, scoped) {
  const field = scoped?.__dataContext?.value?.field ?? scoped?.__field?.value;
  return String(text)
    .replace("${__field.displayName}", field?.displayName ?? field?.state?.displayName ?? "")
    .replace(/\$\{__field\.labels\.(\w+)\}/g, (_, label) => field?.labels?.[label] ?? "");
}

function written({ prefix, text, suffix }) {
  return `${prefix ?? ""}${text}${suffix ?? ""}`.replaceAll("\u00a0", " ");
}

async function transformed(transformations, frames) {
  return new Promise((resolve, reject) => {
    const result = data.transformDataFrame(transformations, frames);
    if (Array.isArray(result)) resolve(result);
    else result.subscribe({ next: resolve, error: reject });
  });
}

async function answer({ panel, frames }) {
  const made = frames.map((frame) => data.toDataFrame(frame));
  const shown = await transformed(panel.transformations ?? [], made);
  const common = { replaceVariables, theme, timeZone: "utc", fieldConfigRegistry };
  const fields = { data: shown, fieldConfig: panel.fieldConfig, ...common };
  if (panel.options?.reduceOptions) {
    const values = data.getFieldDisplayValues({
      ...common, fieldConfig: panel.fieldConfig, reduceOptions: panel.options.reduceOptions,
      data: data.applyFieldOverrides(fields),
    });
    return values.map(({ display, field }) => ({
      // As the panel does: a value that is alone is shown without its name, unless one is set.
      title: values.length === 1 && !field.displayName && panel.type === "bargauge" ? "" : display.title,
      text: written(display), percent: display.percent ?? null, color: display.color,
    }));
  }
  const applied = data.applyFieldOverrides(fields);
  return applied.flatMap((frame) =>
    frame.fields.map((field) => {
      const display = field.display ?? data.getDisplayProcessor({ field, theme, timeZone: "utc" });
      const values = Array.from({ length: frame.length }, (_, i) =>
        Array.isArray(field.values) ? field.values[i] : field.values.get(i)
      );
      return {
        name: field.name,
        type: field.type,
        title: data.getFieldDisplayName(field, frame, applied),
        config: field.config,
        range: field.state?.range ?? null,
        cells: values.map((value) => {
          const shown = display(value);
          return { value, text: written(shown), percent: shown.percent ?? null, color: shown.color };
        }),
      };
    })
  );
}

let input = "";
process.stdin.on("data", (chunk) => (input += chunk));
process.stdin.on("end", async () => {
  const results = [];
  for (const job of JSON.parse(input)) results.push(await answer(job));
  process.stdout.write(JSON.stringify(results));
});
