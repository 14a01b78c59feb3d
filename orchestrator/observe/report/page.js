// Draws the charts into their places, when they are first seen to be wanted, and keeps their
// colours those of the page. Charts are Bokeh's; their text, axes and grid read CSS variables.
"use strict";
(() => {
  const PAPER = 680; // pixels between the margins of A4
  const root = document.documentElement;
  const items = JSON.parse(document.getElementById("charts").textContent);
  const picker = document.getElementById("item");
  const touch = matchMedia("(pointer: coarse)").matches;
  const frame = () => new Promise(requestAnimationFrame);

  const models = (type, documents = Bokeh.documents) =>
    documents.flatMap((d) => [...d._all_models.values()]).filter((m) => m.type === type);

  // What CSS variables do not reach is told the colours; all else needs a repaint.
  function recolour() {
    const style = getComputedStyle(root);
    const [ink, faint] = ["--ink", "--faint"].map((name) => style.getPropertyValue(name).trim());
    for (const legend of models("Legend")) legend.label_text_color = ink;
    for (const bar of models("ColorBar")) {
      bar.title_text_color = bar.major_label_text_color = faint;
    }
    const plots = (view) => (view.repaint ? [view] : (view.child_views ?? []).flatMap(plots));
    for (const view of Bokeh.index) {
      for (const plot of plots(view)) plot.repaint();
    }
  }

  // As many columns of a legend as fit beside each other, by the longest of its names.
  function fold(legend, width) {
    const longest = Math.max(...legend.items.map((item) => item.label.value.length));
    const columns = Math.floor((width - 60) / (45 + 7 * longest));
    legend.ncols = Math.max(1, Math.min(legend.items.length, columns));
  }

  async function draw(within) {
    root.removeAttribute("data-drawn");
    for (const place of within.querySelectorAll("[data-chart]:empty")) {
      if (place.closest("[hidden]")) continue;
      await Bokeh.embed.embed_item(items[place.dataset.chart], place);
      for (const legend of models("Legend", Bokeh.documents.slice(-1))) {
        fold(legend, place.clientWidth);
      }
      await frame(); // so that what is drawn is seen before all is
    }
    if (touch) {
      // A finger scrolls the page; the buttons beside a timeline zoom.
      for (const bar of models("Toolbar")) bar.active_drag = null;
    }
    recolour();
    root.setAttribute("data-drawn", "");
  }

  picker.addEventListener("change", () => {
    for (const item of document.querySelectorAll("[data-item]")) {
      item.hidden = item.dataset.item !== picker.value;
    }
    draw(document);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      root.classList.toggle("printing", printing);
      for (const place of document.querySelectorAll("[data-chart]")) {
        const zoom = Math.min(1, PAPER / Math.max(1, place.clientWidth));
        place.style.setProperty("--paper-zoom", printing ? zoom : 1);
      }
      recolour();
    });
  }
  picker.value = "0"; // a reload keeps the last choice in some browsers
  draw(document);
})();
