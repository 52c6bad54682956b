/* The component that draws the panel. FiftyOne loads this file as the plugin's script; it needs no
 * build. React, MUI and FiftyOne's own packages are global variables. segment_panel.py sends the
 * image and the shapes of instances and labels; threshold and pointer need no request. */
(function () {
  "use strict";
  const { createElement: h, useCallback, useEffect, useMemo, useRef, useState } = window.React;
  const mui = window.__mui__, plugins = window.__fop__;

  const LEAVE_OUT = "leave";
  const MEANINGS = [
    ["on", "Object +", "A click on an object, or a box around it"],
    ["off", "Object −", "A click on what is not part of this object"],
    ["like", "Example +", "A box or a click: find everything like it"],
    ["unlike", "Example −", "A box or a click on what is not meant"],
    [LEAVE_OUT, "Leave out", "A click takes an instance out, or puts it back"],
  ];
  const WIDE = 760; // pixels from which the controls are beside the image
  const FILL = 105; // opacity of a mask inside its edge, to 255
  const CLICK = 4; // pixels that the pointer may move in a click
  const GENERAL = ["visual", "object"]; // classes of what was pointed at, without a word
  const POSITIVE = "rgb(60, 220, 90)", NEGATIVE = "rgb(240, 60, 50)";

  /* These outlive the component, which the App removes when a tab is changed: */
  const controls = {
    concepts: [], typed: "", threshold: 0.5, meaning: "on", live: false, labels: true,
    label_field: "esam3", model: null, settings: false,
  };
  const turned = new Map(); // the instances that were taken out or put back, by set
  const kept = new Map(); // what each panel shows, by its id

  // Shapes ------------------------------------------------------------------------------------

  /** Turn run lengths into pictures of masks, and keep their cells for the pointer. */
  function prepare(set, fill) {
    if (!set) return null;
    const shapes = set.shapes.map((shape) => {
      const [x0, y0, x1, y1] = shape.box;
      const color = shape.color || [255, 255, 255];
      if (!shape.runs) return { ...shape, color };
      const width = Math.round(x1 - x0), height = Math.round(y1 - y0);
      const cells = new Uint8Array(width * height);
      let at = 0;
      shape.runs.split(" ").forEach((run, i) => cells.fill(i % 2, at, at += Number(run)));
      return { ...shape, color, cells, width, height, image: mask(cells, width, height, color, fill) };
    });
    return { key: set.key, rows: set.grid[0], columns: set.grid[1], shapes };
  }

  /** A canvas with a filled mask that has an edge. */
  function mask(cells, width, height, color, fill) {
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, width);
    canvas.height = Math.max(1, height);
    const context = canvas.getContext("2d");
    const data = context.createImageData(canvas.width, canvas.height);
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        if (!cells[i]) continue;
        const edge = x === 0 || y === 0 || x === width - 1 || y === height - 1 ||
          !cells[i - 1] || !cells[i + 1] || !cells[i - width] || !cells[i + width];
        data.data.set([...color, edge ? 255 : fill], 4 * i);
      }
    }
    context.putImageData(data, 0, 0);
    return canvas;
  }

  /** Whether a place, in [0, 1], is on a shape. */
  function covers(set, shape, x, y) {
    const column = x * set.columns, row = y * set.rows;
    const [x0, y0, x1, y1] = shape.box;
    if (column < x0 || column >= x1 || row < y0 || row >= y1) return false;
    if (!shape.cells) return true;
    return !!shape.cells[Math.floor(row - y0) * shape.width + Math.floor(column - x0)];
  }

  /** The instances that are shown, each with whether Accept takes it. */
  function visible(found, objects, result, threshold) {
    const out = [];
    for (const [kind, set, taken] of [
      ["found", found, result.taken], ["objects", objects, result.taken_objects],
    ]) {
      if (!set) continue;
      const already = new Set(taken);
      const mine = turned.get(set.key) || new Set();
      set.shapes.forEach((shape, index) => {
        if (kind === "found" && !(shape.score > Math.fround(threshold))) return;
        if (shape.cells && !shape.cells.length) return; // a mask without a pixel
        const chosen = already.has(index) === mine.has(index);
        out.push({ kind, set, shape, index, chosen, taken: already.has(index) });
      });
    }
    return out;
  }

  const nameOf = ({ label }, first) => (first && GENERAL.includes(label) ? first : label);

  // Drawing -----------------------------------------------------------------------------------

  function draw(canvas, frame, scene) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(frame.boxWidth * ratio);
    canvas.height = Math.round(frame.boxHeight * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.translate(frame.left, frame.top);
    const { width, height } = frame;
    const rectangle = ([x0, y0, x1, y1], color, line, dash = []) => {
      pen.setLineDash(dash);
      pen.strokeStyle = color;
      pen.lineWidth = line;
      pen.strokeRect(x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height);
      pen.setLineDash([]);
    };
    if (scene.image) pen.drawImage(scene.image, 0, 0, width, height);
    const existing = scene.labels && scene.existing;
    for (const shape of existing ? existing.shapes : []) {
      drawShape(pen, frame, existing, shape, "label");
    }
    for (const { set, shape, chosen } of scene.shown) {
      drawShape(pen, frame, set, shape, chosen ? "chosen" : "left");
    }
    for (const box of scene.boxes) rectangle(box, box[4] ? POSITIVE : NEGATIVE, 2.5);
    if (scene.drag) rectangle(scene.drag, "white", 1.5, [6, 4]);
    for (const [x, y, sign] of scene.points) {
      pen.beginPath();
      pen.arc(x * width, y * height, 6, 0, 2 * Math.PI);
      pen.fillStyle = sign ? POSITIVE : NEGATIVE;
      pen.fill();
      [pen.lineWidth, pen.strokeStyle] = [1.5, "white"];
      pen.stroke();
    }
    if (scene.hover) drawName(pen, frame, scene.hover);
  }

  function drawShape(pen, frame, set, shape, look) {
    const [x0, y0, x1, y1] = shape.box;
    const sx = frame.width / set.columns, sy = frame.height / set.rows;
    pen.globalAlpha = look === "left" ? 0.3 : 1;
    if (shape.image) {
      pen.drawImage(shape.image, x0 * sx, y0 * sy, (x1 - x0) * sx, (y1 - y0) * sy);
    }
    if (!shape.image || look === "label") {
      pen.lineWidth = look === "label" ? 1 : 2;
      pen.setLineDash(look === "label" ? [4, 3] : []);
      pen.strokeStyle = `rgb(${shape.color.join(",")})`;
      pen.strokeRect(x0 * sx, y0 * sy, (x1 - x0) * sx, (y1 - y0) * sy);
      pen.setLineDash([]);
    }
    pen.globalAlpha = 1;
  }

  /** The class and the score of the instance under the pointer. */
  function drawName(pen, frame, hover) {
    pen.font = "13px Palanquin, sans-serif";
    let text = hover.text;
    while (text.length > 4 && pen.measureText(text).width > frame.width - 12) {
      text = text.slice(0, -2).replace(/…?$/, "…");
    }
    const width = pen.measureText(text).width + 12;
    const x = Math.max(0, Math.min(hover.x * frame.width + 10, frame.width - width));
    const y = Math.max(0, hover.y * frame.height - 26);
    pen.fillStyle = "rgba(18, 18, 20, 0.85)";
    pen.fillRect(x, y, width, 22);
    pen.fillStyle = "white";
    pen.fillText(text, x + 6, y + 15);
  }

  // Parts -------------------------------------------------------------------------------------

  /** The words. Enter searches for what is typed; a suggestion is taken only when chosen. */
  function Words({ value, typed, classes, onTyped, onChange, onSearch }) {
    const byKey = useRef(false);
    const [open, setOpen] = useState(false);
    return h(mui.Autocomplete, {
      open, onOpen: () => setOpen(true), onClose: () => setOpen(false),
      multiple: true, freeSolo: true, size: "small", filterSelectedOptions: true,
      autoHighlight: false, clearOnBlur: false, options: classes, value, inputValue: typed,
      onInputChange: (_, text, reason) => reason === "input" && onTyped(text),
      onHighlightChange: (_, option, reason) => {
        byKey.current = option !== null && reason === "keyboard";
      },
      onChange: (event, names, reason) => (
        reason === "selectOption" ? onSearch(names) : onChange(names)),
      onKeyDown: (event) => {
        if (event.key !== "Enter" || byKey.current) return;
        event.defaultMuiPrevented = true; // the option under the pointer is not what is typed
        event.preventDefault();
        setOpen(false);
        onSearch(withTyped(value, typed));
      },
      renderInput: (params) => h(mui.TextField, {
        ...params,
        placeholder: value.length ? "" : "What to look for, then Enter",
        inputProps: { ...params.inputProps, "aria-label": "Concepts" },
      }),
      sx: { flex: 1, minWidth: 0,
        "& .MuiAutocomplete-inputRoot": { maxHeight: 96, overflowY: "auto" } },
    });
  }

  /** The phrases, with those that are being typed; a comma is between two phrases. */
  const withTyped = (concepts, typed) => [
    ...new Set([...concepts, ...typed.split(",").map((phrase) => phrase.trim())]),
  ].filter(Boolean);

  /** The size of an element, in pixels. */
  function useSize(element) {
    const [size, setSize] = useState({ width: 0, height: 0 });
    useEffect(() => {
      const observer = new ResizeObserver(([entry]) => {
        const { width, height } = entry.contentRect;
        setSize({ width: Math.floor(width), height: Math.floor(height) });
      });
      observer.observe(element.current);
      return () => observer.disconnect();
    }, []);
    return size;
  }

  function button(label, onClick, options = {}) {
    return h(mui.Button, {
      key: label, size: "small", variant: "outlined", color: "secondary", onClick,
      sx: { textTransform: "none", minWidth: 0, px: 1.25, whiteSpace: "nowrap" }, ...options,
    }, label);
  }

  /** A text with suggestions; what is typed counts when Enter is pressed or the field is left. */
  function Choice({ label, options, value, onSet }) {
    const take = (text) => text.trim() && text.trim() !== value && onSet(text.trim());
    return h(mui.Autocomplete, {
      freeSolo: true, size: "small", disableClearable: true, autoHighlight: false, options, value,
      sx: { flex: 1, minWidth: 150 }, onChange: (_, text) => take(text),
      onBlur: (event) => take(event.target.value),
      renderInput: (params) => h(mui.TextField, { ...params, label }),
    });
  }

  /** The number of shown instances of each class, and how sure the model is that it is there. */
  function Counts({ shown, result, first }) {
    const counts = new Map();
    const row = (name) => {
      if (!counts.has(name)) counts.set(name, { found: 0, taken: 0, color: null });
      return counts.get(name);
    };
    for (const label of result.concepts) row(nameOf({ label }, first));
    for (const { shape, chosen, taken } of shown) {
      const one = row(nameOf(shape, first));
      one.found += 1;
      one.color = one.color || shape.color;
      if (taken && !chosen) one.taken += 1;
    }
    const chips = [...counts].map(([name, { found, taken, color }]) => {
      const sure = result.presence[name];
      const text = `${name} ${found}` + (taken ? `, ${taken} labeled already` : "");
      const title = sure === undefined ? name : `${name}: in the image at all ${sure.toFixed(2)}`;
      return h(mui.Tooltip, { key: name, title }, h(mui.Chip, {
        size: "small", label: text, "data-count": found, "data-class": name,
        sx: { maxWidth: 240, borderLeft: `4px solid rgb(${(color || [128, 128, 128]).join(",")})`,
          opacity: found ? 1 : 0.6 },
      }));
    });
    return h(mui.Box, {
      "data-cy": "esam3-counts",
      sx: { display: "flex", flexWrap: "wrap", gap: 0.5, minHeight: 26, maxHeight: 84, overflowY: "auto" },
    }, chips);
  }

  /** The image; it fills its place, and gives clicks and boxes in [0, 1]. */
  function Picture({ scene, onClick, onBox, onHover, setDrag, busy }) {
    const place = useRef(null), canvas = useRef(null), start = useRef(null);
    const box = useSize(place);
    const frame = useMemo(() => {
      const scale = Math.min(box.width / scene.width, box.height / scene.height) || 0;
      const width = scene.width * scale, height = scene.height * scale;
      return { width, height, left: (box.width - width) / 2, top: (box.height - height) / 2,
        boxWidth: box.width, boxHeight: box.height };
    }, [box, scene.width, scene.height]);
    useEffect(() => {
      if (frame.width > 0) draw(canvas.current, frame, scene);
    }, [frame, scene]);

    const at = (event) => {
      const area = canvas.current.getBoundingClientRect();
      return [(event.clientX - area.left - frame.left) / frame.width,
        (event.clientY - area.top - frame.top) / frame.height];
    };
    const clamp = (v) => Math.min(1, Math.max(0, v));
    const inside = (place) => place.every((v) => v === clamp(v));
    const moved = (event) => start.current && Math.hypot(
      event.clientX - start.current.x, event.clientY - start.current.y) > CLICK;
    const corners = (event) => [...start.current.at, ...at(event).map(clamp)];
    return h("div", {
      ref: place, style: { flex: 1, minHeight: 0, minWidth: 0, position: "relative" },
    }, h("canvas", {
      ref: canvas, "data-cy": "esam3-picture",
      style: { position: "absolute", inset: 0, width: box.width, height: box.height,
        cursor: busy ? "progress" : "crosshair", touchAction: "none" },
      onPointerDown: (event) => {
        if (event.button !== 0 || !inside(at(event))) return;
        start.current = { x: event.clientX, y: event.clientY, at: at(event) };
        event.currentTarget.setPointerCapture(event.pointerId);
      },
      onPointerMove: (event) => {
        if (moved(event)) setDrag(corners(event));
        else if (!start.current) onHover(inside(at(event)) ? at(event) : null);
      },
      onPointerUp: (event) => {
        if (!start.current) return;
        if (moved(event)) onBox(corners(event));
        else onClick(...start.current.at);
        start.current = null;
        setDrag(null);
      },
      onPointerLeave: () => onHover(null),
    }));
  }

  // The panel ---------------------------------------------------------------------------------

  /** Send events one after another, with what the controls hold and the browser has. */
  function useSend(events) {
    const panel = window.__fosp__.usePanelId();
    const trigger = window.__foo__.usePanelEvent();
    const [busy, setBusy] = useState(0);
    const [data, setData] = useState(kept.get(panel) || {});
    const latest = useRef({});
    latest.current = { trigger, panel, events };
    const queue = useRef(Promise.resolve());
    const send = useCallback((event, params) => {
      setBusy((n) => n + 1);
      queue.current = queue.current.then(() => new Promise((resolve) => {
        const now = latest.current;
        const { concepts, typed, label_field, model, meaning, live } = controls;
        const before = kept.get(now.panel) || {};
        const has = { picture: before.picture?.key, existing: before.existing?.key,
          found: before.found?.key };
        now.trigger(now.panel, {
          operator: now.events[event],
          params: { concepts: withTyped(concepts, typed), label_field, model, meaning, live, has,
            ...params },
          callback: ({ result }) => {
            kept.set(now.panel, { ...before, ...result });
            setData(kept.get(now.panel));
            setBusy((n) => n - 1);
            resolve();
          },
        });
      }));
    }, []);
    return [data, send, busy > 0];
  }

  function useImage(source) {
    const [image, setImage] = useState(null);
    useEffect(() => {
      const element = new Image();
      element.onload = () => setImage(element);
      if (source) element.src = source;
      return () => { setImage(null); element.onload = null; };
    }, [source]);
    return image;
  }

  function Panel({ schema, data: { moved } = {}, layout }) {
    const [, refresh] = useState(0);
    const set = (change) => { Object.assign(controls, change); refresh((n) => n + 1); };
    const [data, send, busy] = useSend(schema.view.events);
    const [hover, setHover] = useState(null), [drag, setDrag] = useState(null);
    const [closed, setClosed] = useState(null), [turns, setTurns] = useState(0);
    const root = useRef(null);
    const { width } = useSize(root);
    useEffect(() => { send("open"); }, [moved, send]);

    const { picture, result, choices } = data;
    const image = useImage(picture?.source);
    const found = useMemo(() => prepare(data.found, FILL), [data.found?.key]);
    const existing = useMemo(() => prepare(data.existing, 0), [data.existing?.key]);
    const objects = useMemo(() => prepare(result?.objects, FILL), [result]);
    const first = withTyped(controls.concepts, controls.typed)[0];
    const shown = useMemo(() => (
      result ? visible(found, objects, result, controls.threshold) : []
    ), [found, objects, result, controls.threshold, turns]);
    const at = (x, y) => shown.findLast(({ set: of, shape }) => covers(of, shape, x, y));
    const under = hover && at(...hover);
    const scene = useMemo(() => ({
      image, shown, existing, labels: controls.labels, drag,
      width: picture?.width || 4, height: picture?.height || 3,
      points: result?.points || [], boxes: result?.boxes || [],
      hover: under && { x: hover[0], y: hover[1], text: describe(under, first) },
    }), [image, shown, existing, controls.labels, drag, picture, result, under, hover, first]);

    const search = (concepts) => { set({ concepts, typed: "" }); send("find", { concepts }); };
    const click = (x, y) => {
      if (controls.meaning !== LEAVE_OUT) return send("click", { x, y });
      const hit = at(x, y);
      if (!hit) return undefined;
      const mine = new Set(turned.get(hit.set.key));
      if (!mine.delete(hit.index)) mine.add(hit.index);
      turned.set(hit.set.key, mine);
      return setTurns((n) => n + 1);
    };
    const box = (corners) => controls.meaning !== LEAVE_OUT && send("box", { corners });
    const accept = () => {
      const chosen = (kind) => shown.filter((s) => s.kind === kind && s.chosen).map((s) => s.index);
      const taken = shown.filter((s) => s.taken && !s.chosen).length;
      send("accept", { found: chosen("found"), objects: chosen("objects"), taken });
      turned.delete(objects?.key);
    };

    const wide = width >= WIDE;
    const work = !!found || !!objects || !!result?.boxes.length;
    const ready = !!picture && !!result;
    const message = data.message?.text && data.message !== closed && h(mui.Alert, {
      severity: data.message.kind, "data-cy": "esam3-message",
      sx: { position: "absolute", insetInline: 8, bottom: 8, py: 0, zIndex: 1 },
      onClose: () => setClosed(data.message),
    }, data.message.text);
    const words = h(mui.Box, { sx: { display: "flex", gap: 1, alignItems: "flex-start" } },
      h(Words, {
        value: controls.concepts, typed: controls.typed, classes: choices?.classes || [],
        onTyped: (typed) => set({ typed }), onChange: (concepts) => set({ concepts }),
        onSearch: search,
      }),
      button("Find", () => search(withTyped(controls.concepts, controls.typed)),
        { variant: "contained", color: "primary", disabled: !ready, sx: { height: 40 } }));
    const slider = h(mui.Box, { sx: { display: "flex", gap: 2, alignItems: "center" } },
      h(mui.Typography, { variant: "body2" }, "Threshold"),
      h(mui.Slider, {
        size: "small", min: 0, max: 1, step: 0.01, value: controls.threshold,
        "aria-label": "Threshold", onChange: (_, threshold) => set({ threshold }),
      }),
      h(mui.Typography, { variant: "body2" }, controls.threshold.toFixed(2)));
    const meanings = h(mui.Box, { sx: { display: "flex", flexWrap: "wrap", gap: 0.5 } },
      MEANINGS.map(([value, label, title]) => h(mui.Tooltip, { key: value, title },
        h(mui.ToggleButton, {
          value, size: "small", selected: controls.meaning === value,
          onChange: () => set({ meaning: value }),
          sx: { textTransform: "none", py: 0.25, px: 1 },
        }, label))),
      button("Next object", () => send("next_object"), { disabled: !result?.growing }));
    const actions = h(mui.Box, { sx: { display: "flex", flexWrap: "wrap", gap: 0.5 } },
      button("Accept", accept, { disabled: !shown.length, variant: "contained", color: "primary" }),
      button("Discard", () => send("discard"), { disabled: !work }),
      button("Undo", () => send("undo"), { disabled: !result?.undo }),
      !!data.running?.length && button("Cancel runs", () => send("cancel"), { color: "error" }),
      !wide && button("Settings", () => set({ settings: !controls.settings })));
    const field = h(Choice, {
      label: "Accept into the field", options: choices?.fields || [], value: controls.label_field,
      onSet: (label_field) => { set({ label_field }); send("open"); },
    });
    const model = h(Choice, {
      label: data.loaded ? "Model" : "Model, loaded at its first use",
      options: choices?.models || [], value: controls.model || choices?.model || "",
      onSet: (name) => { set({ model: name }); send("open"); },
    });
    const check = (key, label) => h(mui.FormControlLabel, {
      label: h(mui.Typography, { variant: "body2" }, label), sx: { mx: 0 },
      control: h(mui.Checkbox, { size: "small", sx: { p: 0.5 }, checked: controls[key],
        onChange: (event) => set({ [key]: event.target.checked }) }),
    });
    const rest = h(mui.Box, {
      sx: { display: "flex", flexWrap: "wrap", columnGap: 1, rowGap: 1.25, pt: 1 },
    }, field, model, check("labels", "Show the labels of the field"),
      check("live", "Search at once when another sample is opened"));
    const more = wide ? rest : controls.settings && rest;
    const counts = result && h(Counts, { shown, result, first });
    const title = h(mui.Typography, {
      variant: "body2", noWrap: true, title: data.title, color: "text.secondary",
    }, data.sample === null ? "No sample: open one, or select it in the grid" : data.title || "");
    const controlBox = h(mui.Box, {
      sx: { display: "flex", flexDirection: "column", gap: 1, flexShrink: 0,
        width: wide ? 320 : "auto", overflowY: wide ? "auto" : "visible", pr: wide ? 1 : 0 },
    }, title, words, slider, actions, meanings, counts, more);
    return h("div", {
      ref: root, "data-cy": "esam3-panel", "data-busy": busy,
      onKeyDown: (event) => event.key !== "Escape" && event.stopPropagation(), // the App's keys
      style: { height: layout?.height || "100%", boxSizing: "border-box", gap: 8,
        padding: wide ? "8px 8px 8px 48px" : 8, // the modal's arrow is at the left edge
        display: "flex", flexDirection: wide ? "row-reverse" : "column", minHeight: 0 },
    }, controlBox, h("div", {
      style: { flex: 1, minWidth: 0, minHeight: 260, display: "flex", flexDirection: "column",
        position: "relative" },
    }, message, h("div", { style: { height: 4 } }, busy && h(mui.LinearProgress)),
    picture && h(Picture, { scene, busy, setDrag, onHover: setHover, onClick: click, onBox: box })));
  }

  function describe({ shape, taken, chosen }, first) {
    const score = shape.score === null ? "" : ` ${shape.score.toFixed(2)}`;
    const note = taken && !chosen ? ", labeled already" : chosen ? "" : ", left out";
    return nameOf(shape, first) + score + note;
  }

  plugins.registerComponent({
    name: "EfficientSam3Panel", label: "EfficientSAM3", component: Panel,
    type: plugins.PluginComponentType.Component,
    activator: () => true,
  });
})();
