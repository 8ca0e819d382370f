// The map of an output: points that can be zoomed, searched, named and saved.
'use strict';
(() => {
  const { card, colour, count, css, make, mark, REST } = Charts;
  const page = JSON.parse(document.getElementById('page').textContent);
  const MOST_ROWS = 200;
  const STEPS = 65535;
  const scaled = (values, [low, high]) => values.map(value => low + (value / STEPS) * (high - low));
  const x = scaled(page.x, page.ranges[0]), y = scaled(page.y, page.ranges[1]);
  const group = new Uint16Array(x.length);
  page.groups.forEach((each, index) => group.fill(index, each.first, each.first + each.count));
  const hidden = new Set();
  let matches = null, at = -1; // row → whether it matches the search

  const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const known = page.values?.filter(value => value !== null) ?? [];
  const least = known.reduce((a, b) => Math.min(a, b), Infinity), most = known.reduce((a, b) => Math.max(a, b), -Infinity);
  const ramp = share => {
    const place = share * (VIRIDIS.length - 1), low = Math.min(VIRIDIS.length - 2, Math.floor(place)), part = place - low;
    return `rgb(${VIRIDIS[low].map((from, index) => Math.round(from + (VIRIDIS[low + 1][index] - from) * part)).join(' ')})`;
  };
  const shade = row => {
    if (!page.values) return page.groups[group[row]].rest ? REST : colour(group[row]);
    const value = page.values[row];
    return value === null ? REST : ramp(most > least ? (value - least) / (most - least) : 0.5);
  };
  const shown = row => !hidden.has(group[row]);
  const text = row => page.texts?.[row] ?? '';
  const nameOf = row => (page.values ? `${page.groups[0].name}: ${page.values[row] ?? 'none'}` : page.groups[group[row]].name);
  const chunk = row => page.chunks?.[row] ?? 0;

  const table = () => {
    const rows = [];
    for (let row = 0; row < x.length; row++) if (shown(row) && (!matches || matches[row])) rows.push(row);
    return { columns: [{ name: 'id' }, { name: 'chunk', number: true }, { name: page.colour ?? 'group' }, { name: page.axes[0], number: true }, { name: page.axes[1], number: true }, { name: 'text' }],
      rows: rows.map(row => [page.ids[row], chunk(row), page.values ? String(page.values[row] ?? 'none') : nameOf(row), { raw: x[row].toFixed(4), text: x[row].toFixed(4) }, { raw: y[row].toFixed(4), text: y[row].toFixed(4) }, text(row)]) };
  };
  const map = card(page.title, { name: 'map', broad: true, content: table, most: MOST_ROWS });
  document.getElementById('charts').append(map.element);

  const draw = plot => {
    const { ctx, bbox } = plot, radius = 3 * devicePixelRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    for (const lit of [false, true]) {
      ctx.globalAlpha = lit ? 0.8 : 0.08;
      for (let row = 0; row < x.length; row++) {
        if (!shown(row) || (!matches || Boolean(matches[row])) !== lit) continue;
        ctx.fillStyle = shade(row);
        ctx.beginPath();
        ctx.arc(plot.valToPos(x[row], 'x', true), plot.valToPos(y[row], 'y', true), radius, 0, 7);
        ctx.fill();
      }
    }
    if (at >= 0) {
      ctx.globalAlpha = 1;
      ctx.strokeStyle = css('--fg');
      ctx.lineWidth = 2 * devicePixelRatio;
      ctx.beginPath();
      ctx.arc(plot.valToPos(x[at], 'x', true), plot.valToPos(y[at], 'y', true), radius * 2, 0, 7);
      ctx.stroke();
    }
    ctx.restore();
  };
  const nearest = (plot, left, top) => {
    let found = -1, best = 144; // pixels, squared
    for (let row = 0; row < x.length; row++) {
      if (!shown(row) || (matches && !matches[row])) continue;
      const across = plot.valToPos(x[row], 'x') - left, along = plot.valToPos(y[row], 'y') - top, distance = across * across + along * along;
      if (distance < best) { best = distance; found = row; }
    }
    return found;
  };
  const lines = row => [
    { name: `${page.ids[row]}${chunk(row) ? ` · chunk ${chunk(row)}` : ''}`, colour: shade(row) },
    ...(page.colour ? [{ name: nameOf(row), text: true }] : []),
    ...(text(row) ? [{ name: text(row), text: true }] : []),
  ];
  const padded = ([low, high]) => { const edge = (high - low) * 0.04 || 1; return [low - edge, high + edge]; };
  const whole = page.ranges.map(padded);
  const axis = label => Charts.axis({ label, labelSize: 22, labelFont: '12px system-ui,sans-serif', size: label === page.axes[0] ? 34 : 50 });
  const height = () => Math.max(300, Math.min(900, innerHeight - 230));
  const mounted = Charts.mount(map.plot, {
    padding: [10, 12, 0, 0],
    scales: { x: { time: false, range: (_, low, high) => [low ?? whole[0][0], high ?? whole[0][1]] }, y: { range: (_, low, high) => [low ?? whole[1][0], high ?? whole[1][1]] } },
    axes: [axis(page.axes[0]), axis(page.axes[1])],
    series: [{}, { paths: () => null, points: { show: false } }],
    cursor: { drag: { x: true, y: true, uni: 10 }, points: { show: false } },
    hooks: { draw: [draw] },
  }, [whole[0], whole[1]], {
    label: `${page.title}. ${count(x.length)} points. Arrow keys go from point to point; drag to zoom, double-click to see all.`, points: x.length, height: height(),
    describe: (_, plot, row) => { at = row ?? nearest(plot, plot.cursor.left, plot.cursor.top); return at < 0 ? null : lines(at); },
    place: row => [x[row], y[row]], skip: row => !shown(row) || Boolean(matches && !matches[row]),
  });
  const again = () => { mounted.plot.redraw(false, false); map.fill(); };

  const search = make('input', { type: 'search', placeholder: 'words', 'aria-label': 'Search ids and texts', oninput: () => {
    const wanted = search.value.trim().toLocaleLowerCase();
    matches = wanted ? page.ids.map((id, row) => `${id} ${text(row)}`.toLocaleLowerCase().includes(wanted)) : null;
    found.textContent = matches ? `${count(matches.filter(Boolean).length)} of ${count(x.length)}` : '';
    again();
  } });
  const found = make('span', { class: 'soft', 'aria-live': 'polite' });
  const reset = make('button', { type: 'button', onclick: () => { mounted.plot.batch(() => { mounted.plot.setScale('x', { min: whole[0][0], max: whole[0][1] }); mounted.plot.setScale('y', { min: whole[1][0], max: whole[1][1] }); }); } }, 'Show all');
  document.getElementById('filters').append(make('label', {}, 'Search', search), reset, found);
  if (page.values) {
    const bar = make('span', { class: 'swatch', 'aria-hidden': 'true' });
    bar.style.background = `linear-gradient(90deg,${VIRIDIS.map((_, index) => ramp(index / (VIRIDIS.length - 1))).join(',')})`;
    bar.style.width = '8rem';
    map.keys.append(make('li', {}, make('span', { class: 'key' }, `${page.groups[0].name}: ${known.length ? least : 'none'}`, bar, `${known.length ? most : ''}`)));
  } else if (page.groups.length > 1) {
    map.keys.append(...page.groups.map((each, index) => {
      const button = make('button', { type: 'button', 'aria-pressed': 'true', onclick: () => { if (!hidden.delete(index)) hidden.add(index); button.setAttribute('aria-pressed', String(!hidden.has(index))); again(); } }, mark(each.rest ? REST : colour(index)), `${each.name} (${count(each.count)})`);
      return make('li', {}, button);
    }));
  }
  map.note.textContent = page.notes.join(' ');
})();
