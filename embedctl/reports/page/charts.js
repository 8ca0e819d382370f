// Charts over uPlot: stacked bars, lines with a band, points. Foreign text only ever becomes a text node.
'use strict';
const Charts = (() => {
  const COLOURS = ['#4477aa', '#ee6677', '#228833', '#ccbb44', '#66ccee', '#aa3377', '#e08214', '#7f6fb0', '#00807a', '#a0522d'];
  const REST = '#8b95a1';
  const drawn = new Set();

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : value);
    }
    element.append(...children.filter(child => child !== null && child !== undefined));
    return element;
  };
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = index => (index < COLOURS.length ? COLOURS[index] : REST);

  // 0.00 for people; two digits of what is less than a cent
  const money = amount => {
    if (amount === null || amount === undefined) return 'unknown';
    const size = Math.abs(amount);
    if (size > 0 && size < 0.01) {
      const digits = Math.min(15, Math.ceil(-Math.log10(size)) + 1);
      return Number(amount.toPrecision(2)).toFixed(digits).replace(/0+$/, '');
    }
    return amount.toLocaleString('en-US', { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  };
  const count = number => (number === null || number === undefined ? '–' : Math.round(number).toLocaleString('en-US'));
  const percent = share => (share === null || share === undefined || Number.isNaN(share) ? '–' : `${(share * 100).toFixed(1)}%`);
  const short = number => {
    for (const [size, unit] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']]) {
      if (Math.abs(number) >= size) return `${+(number / size).toPrecision(3)}${unit}`;
    }
    return `${+number.toPrecision(3)}`;
  };

  const cell = (text, column) => {
    let value = String(text ?? '');
    const number = column?.number && value !== '' && Number.isFinite(Number(value));
    if (typeof text === 'string' && !number && /^[=+\-@\t\r]/.test(value)) value = `'${value}`; // a spreadsheet would compute it
    return /[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  };
  const csv = table => [table.columns.map(column => column.key ?? column.name), ...table.rows.map(row => row.map(one => (one !== null && typeof one === 'object' ? one.raw : one)))]
    .map((row, line) => row.map((one, index) => cell(one, line ? table.columns[index] : null)).join(',')).join('\r\n') + '\r\n';
  const save = (name, text) => {
    const url = URL.createObjectURL(new Blob([text], { type: 'text/csv;charset=utf-8' }));
    const link = make('a', { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  };

  // table: {columns: [{name, number}], rows: [[value | {raw, text, bad}]]}
  const table = (content, caption) => {
    const head = make('tr', {}, ...content.columns.map(column => make('th', { scope: 'col', class: column.number ? 'n' : null }, column.name)));
    const body = content.rows.map(row => make('tr', {}, ...row.map((value, index) => {
      const column = content.columns[index];
      const text = value !== null && typeof value === 'object' ? value.text : column.number && typeof value === 'number' ? count(value) : value ?? '–';
      return make(index ? 'td' : 'th', { class: [column.number ? 'n' : 'name', value?.bad ? 'bad' : ''].join(' ').trim(), scope: index ? null : 'row' }, String(text));
    })));
    return make('div', { class: 'wide', tabindex: 0, role: 'region', 'aria-label': caption },
      make('table', {}, make('caption', { class: 'live' }, caption), make('thead', {}, head), make('tbody', {}, ...body)));
  };

  // A card with a chart that can be seen as a table and saved as CSV; `content()` gives the table.
  const card = (title, { name, content, broad = false, chart = true, most = Infinity }) => {
    const heading = make('h2', { id: `${name}-title` }, title);
    const plot = make('div', { class: 'plot' });
    const rows = make('div', { class: chart ? 'rows hidden' : 'rows' });
    const toggle = make('button', { type: 'button', 'aria-pressed': 'false', onclick: () => show(!shown) }, 'Table');
    const keep = make('button', { type: 'button', 'aria-label': `Save ${title} as CSV`, onclick: () => save(`${name}.csv`, csv(content())) }, 'CSV');
    const keys = make('ul', { class: 'keys' });
    const note = make('p', { class: 'soft note' });
    let shown = !chart;
    const fill = () => { if (shown) rows.replaceChildren(...some(content())); };
    const some = whole => [table({ ...whole, rows: whole.rows.slice(0, most) }, heading.textContent), ...(whole.rows.length > most ? [make('p', { class: 'soft' }, `${count(whole.rows.length - most)} more rows: search, or save them as CSV.`)] : [])];
    const show = wanted => {
      shown = wanted;
      toggle.setAttribute('aria-pressed', String(shown));
      toggle.textContent = shown ? 'Chart' : 'Table';
      plot.classList.toggle('hidden', shown);
      keys.classList.toggle('hidden', shown);
      rows.classList.toggle('hidden', !shown);
      fill();
    };
    const element = make('section', { class: broad ? 'card broad' : 'card', id: name, 'aria-labelledby': `${name}-title` },
      make('div', { class: 'head' }, heading, chart ? toggle : null, keep), chart ? plot : null, rows, chart ? keys : null, note);
    return { element, plot, keys, note, fill, title: text => { heading.textContent = text; } };
  };

  const axis = extra => ({ stroke: () => css('--soft'), grid: { stroke: () => css('--grid'), width: 1 }, ticks: { stroke: () => css('--grid'), width: 1, size: 4 }, font: '12px system-ui,sans-serif', ...extra });

  // Mount uPlot in `place`: as wide as it is, drawn anew when that or the colours change; cursor by mouse, touch, keys.
  const mount = (place, options, data, { label, points, describe, height = 260, place: placed = null, skip = () => false }) => {
    const tip = make('div', { class: 'tip hidden' });
    const live = make('div', { class: 'live', 'aria-live': 'polite' });
    place.replaceChildren();
    Object.assign(place.dataset, { points });
    place.setAttribute('tabindex', '0');
    place.setAttribute('role', 'group');
    place.setAttribute('aria-roledescription', 'chart');
    place.setAttribute('aria-label', label);
    const width = () => Math.max(200, place.clientWidth || 600);
    let chosen = null; // by a key: the cursor is put on it
    const move = plot => {
      const { left, idx } = plot.cursor;
      if (idx === null || idx === undefined || left < 0) { tip.classList.add('hidden'); return; }
      const lines = describe(idx, plot, chosen);
      if (!lines) { tip.classList.add('hidden'); return; }
      tip.replaceChildren(...lines.map(line => make('div', { class: line.total ? 'total' : line.text ? 'text' : null },
        line.colour ? mark(line.colour) : null, make('span', {}, line.name), line.value === undefined ? null : make('b', {}, line.value))));
      tip.classList.remove('hidden');
      const wide = tip.offsetWidth, x = plot.over.offsetLeft + left;
      tip.style.left = `${Math.max(0, x + 14 + wide > place.clientWidth ? x - wide - 14 : x + 14)}px`;
      tip.style.top = '8px';
    };
    const plot = new uPlot({
      width: width(), height, legend: { show: false }, ...options,
      hooks: { ...(options.hooks ?? {}), setCursor: [move] },
    }, data, place);
    place.append(tip, live);
    let at = -1;
    const step = where => {
      const last = points - 1, onward = where < at ? -1 : 1;
      let next = Math.min(last, Math.max(0, where));
      while (next > 0 && next < last && skip(next)) next += onward;
      at = next;
      chosen = at;
      const [across, along] = placed ? placed(at) : [plot.data[0][at], null];
      plot.setCursor({ left: plot.valToPos(across, 'x'), top: along === null ? plot.over.clientHeight / 2 : plot.valToPos(along, 'y') });
      if (placed) plot.redraw(false, false);
      chosen = null;
      live.textContent = (describe(at, plot, at) ?? []).map(line => [line.name, line.value].filter(Boolean).join(' ')).join(', ');
    };
    place.onkeydown = press => {
      const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: points - 1 };
      if (press.key === 'Escape') plot.setCursor({ left: -10, top: -10 });
      else if (press.key in moves) step(moves[press.key]);
      else return;
      press.preventDefault();
    };
    const sizes = new ResizeObserver(() => {
      const wanted = width();
      if (place.clientWidth && wanted !== plot.width) plot.setSize({ width: wanted, height });
    });
    sizes.observe(place);
    drawn.add(plot);
    return { plot, remove: () => { sizes.disconnect(); drawn.delete(plot); plot.destroy(); place.replaceChildren(); } };
  };
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => drawn.forEach(plot => plot.redraw(false, true)));

  const mark = shade => {
    const swatch = make('span', { class: 'swatch', 'aria-hidden': 'true' });
    swatch.style.background = shade;
    return swatch;
  };

  // Which of `count` labels of `space` pixels fit into `width`: all, every second, every fifth …
  const fitting = (labels, width, space) => {
    const most = Math.max(1, Math.floor(width / space));
    const step = [1, 2, 3, 5, 7, 10, 14, 20, 30, 50, 60, 90, 100].find(each => labels.length / each <= most) ?? Math.ceil(labels.length / most);
    return labels.map((_, index) => index).filter(index => index % step === 0);
  };

  /* Stacked bars. spec: {labels, series: [{name, colour, values}], format, axisFormat, hatched: [part of each bar] | null,
     marks: [{index, text}], alarms: [index], select(from, to), label} */
  const stacked = (place, spec) => {
    const total = spec.labels.map((_, index) => spec.series.reduce((sum, series) => sum + (series.values[index] ?? 0), 0));
    let running = spec.labels.map(() => 0);
    const sums = spec.series.map(series => (running = running.map((sum, index) => sum + Math.max(0, series.values[index] ?? 0))));
    const layers = sums.map((values, index) => ({ values, colour: spec.series[index].colour })).reverse(); // the highest first
    const bars = uPlot.paths.bars({ size: [0.82, 56], radius: 0 });
    const size = plot => Math.min(56 * devicePixelRatio, Math.abs(plot.valToPos(1, 'x', true) - plot.valToPos(0, 'x', true)) * 0.82);
    const over = plot => {
      const { ctx } = plot;
      const half = size(plot) / 2;
      ctx.save();
      if (spec.hatched) {
        ctx.strokeStyle = css('--bg');
        ctx.lineWidth = devicePixelRatio * 1.2;
        spec.hatched.forEach((part, index) => {
          if (!part) return;
          const x = plot.valToPos(index, 'x', true), top = plot.valToPos(total[index], 'y', true), end = plot.valToPos(total[index] - part, 'y', true);
          ctx.save();
          ctx.beginPath();
          ctx.rect(x - half, top, half * 2, end - top);
          ctx.clip();
          ctx.beginPath();
          for (let at = x - half - (end - top); at < x + half; at += 6 * devicePixelRatio) {
            ctx.moveTo(at, end);
            ctx.lineTo(at + (end - top), top);
          }
          ctx.stroke();
          ctx.restore();
        });
      }
      ctx.font = `${11 * devicePixelRatio}px system-ui,sans-serif`;
      ctx.textAlign = 'center';
      for (const { index, text } of spec.marks ?? []) {
        const x = plot.valToPos(index - 0.5, 'x', true), { top, height } = plot.bbox;
        ctx.strokeStyle = ctx.fillStyle = css('--warn');
        ctx.lineWidth = devicePixelRatio;
        ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
        ctx.beginPath();
        ctx.moveTo(x, top);
        ctx.lineTo(x, top + height);
        ctx.stroke();
        ctx.fillText(text, x, top - 5 * devicePixelRatio);
      }
      ctx.fillStyle = css('--bad');
      ctx.font = `bold ${13 * devicePixelRatio}px system-ui,sans-serif`;
      for (const index of spec.alarms ?? []) ctx.fillText('!', plot.valToPos(index, 'x', true), plot.valToPos(total[index], 'y', true) - 4 * devicePixelRatio);
      ctx.restore();
    };
    const pad = spec.labels.length < 4 ? 1.5 : 0.6;
    const options = {
      padding: [18, 24, 0, 0],
      scales: { x: { time: false, range: () => [-pad, spec.labels.length - 1 + pad] }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.08 : 1] } },
      axes: [
        axis({ grid: { show: false }, splits: plot => fitting(spec.labels, plot.bbox.width / devicePixelRatio, spec.space ?? 84), values: (_, splits) => splits.map(at => spec.labels[at] ?? ''), gap: 6, size: 34 }),
        axis({ values: (_, splits) => splits.map(spec.axisFormat), size: 66 }),
      ],
      series: [{}, ...layers.map(layer => ({ paths: bars, fill: layer.colour, stroke: layer.colour, width: 0, points: { show: false } }))],
      cursor: { y: false, points: { show: false }, drag: { x: Boolean(spec.select), y: false, setScale: false } },
      hooks: {
        draw: [over],
        setSelect: [plot => {
          if (!spec.select || plot.select.width < 6) return;
          const from = Math.round(plot.posToVal(plot.select.left, 'x')), to = Math.round(plot.posToVal(plot.select.left + plot.select.width, 'x'));
          spec.select(Math.max(0, from), Math.min(spec.labels.length - 1, to));
        }],
      },
    };
    const describe = index => {
      if (spec.labels[index] === undefined) return null;
      const lines = spec.series.map(series => ({ name: series.name, colour: series.colour, amount: series.values[index] ?? 0 })).filter(line => line.amount);
      return [
        { name: spec.longLabels?.[index] ?? spec.labels[index] },
        ...lines.map(line => ({ name: line.name, colour: line.colour, value: spec.format(line.amount) })),
        { name: 'total', value: spec.format(total[index]), total: true },
        ...(spec.notes?.(index) ?? []).map(text => ({ name: text, text: true })),
      ];
    };
    const data = [spec.labels.map((_, index) => index), ...layers.map(layer => layer.values)];
    return mount(place, options, data, { label: spec.label, points: spec.labels.length, describe });
  };

  /* Lines over the same labels. spec: {labels, lines: [{name, colour, values, dash, width}], band: [upper, lower] of lines, format,
     axisFormat, label, limit: {value, text}} */
  const lines = (place, spec) => {
    const options = {
      padding: [14, 12, 0, 0],
      scales: { x: { time: false }, y: { range: (_, low, high) => [0, Math.max(high ?? 0, 0) > 0 ? high * 1.08 : 1] } },
      axes: [
        axis({ grid: { show: false }, splits: plot => fitting(spec.labels, plot.bbox.width / devicePixelRatio, spec.space ?? 34), values: (_, splits) => splits.map(at => spec.labels[at] ?? ''), gap: 6, size: 34 }),
        axis({ values: (_, splits) => splits.map(spec.axisFormat), size: 66 }),
      ],
      series: [{}, ...spec.lines.map(line => ({ stroke: line.colour, width: line.width ?? 2, dash: line.dash, points: { show: Boolean(line.points), size: 6 }, spanGaps: false }))],
      bands: spec.band ? [{ series: spec.band.map(index => index + 1), fill: spec.bandColour }] : [],
      cursor: { y: false, drag: { x: false, y: false } },
    };
    const describe = index => [
      { name: spec.longLabels?.[index] ?? spec.labels[index] },
      ...spec.lines.filter(line => line.values[index] !== null && line.values[index] !== undefined).map(line => ({ name: line.name, colour: line.colour, value: spec.format(line.values[index]) })),
    ];
    return mount(place, options, [spec.labels.map((_, index) => index), ...spec.lines.map(line => line.values)], { label: spec.label, points: spec.labels.length, describe, height: 240 });
  };

  return { axis, card, colour, count, css, csv, lines, make, mark, money, mount, percent, REST, short, stacked, table };
})();
