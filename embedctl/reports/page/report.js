// The report page: filters, charts and tables over what `usage report --html` put into the page.
'use strict';
(() => {
  const { card, colour, count, make, mark, money, percent, short, table } = Charts;
  const page = JSON.parse(document.getElementById('page').textContent);
  const report = JSON.parse(document.getElementById('report').textContent);
  const MOST_SERIES = 8;
  const at = id => document.getElementById(id);
  // cells come as steps from one number to the next; a number is its place in time and in each dimension's names
  const cells = (() => {
    const found = { at: [], ...page.cells };
    for (const each of page.dimensions) found[each.key] = [];
    let number = 0;
    for (const step of page.cells.steps) {
      let rest = (number += step);
      for (const each of [...page.dimensions].reverse()) {
        found[each.key].push(rest % each.names.length);
        rest = Math.floor(rest / each.names.length);
      }
      found.at.push(rest);
    }
    for (const [key, [places, values]] of Object.entries(page.cells.sparse)) {
      found[key] = found.at.map(() => 0);
      places.forEach((place, index) => { found[key][place] = values[index]; });
    }
    return found;
  })();
  const DAY = 86400000;
  const day = text => Date.parse(`${text}T00:00:00Z`);
  const iso = time => new Date(time).toISOString().slice(0, 10);
  const usd = amount => `${money(amount === null ? null : Number(amount))} USD`;
  const tip = text => (page.unit === 'month' || state.unit === 'month' ? text.slice(0, 7) : state.unit === 'week' ? `week of ${text}` : text);

  const MEASURES = {
    cost: { title: 'Cost', unit: 'USD', format: usd, axis: value => (Math.abs(value) >= 1000 ? short(value) : money(value)) },
    tokens: { title: 'Tokens', unit: 'tokens', format: count, axis: short },
    calls: { title: 'Calls', unit: 'calls', format: count, axis: short },
  };
  const state = { measure: page.measure, stack: page.stack, unit: page.unit, only: {}, from: 0, to: page.buckets.length - 1, hidden: new Set() };
  const dimension = key => page.dimensions.find(each => each.key === key);
  const names = key => dimension(key).names;

  // ---- what the filters leave
  const kept = () => {
    const rows = [];
    const filters = Object.entries(state.only).filter(([, index]) => index !== null);
    for (let row = 0; row < cells.at.length; row++) {
      if (cells.at[row] < state.from || cells.at[row] > state.to) continue;
      if (filters.every(([key, index]) => cells[key][row] === index)) rows.push(row);
    }
    return rows;
  };
  const filtered = () => Object.values(state.only).some(index => index !== null) || state.from > 0 || state.to < page.buckets.length - 1;
  const SUMS = ['tokens', 'cost', 'risk', 'fallback', 'unpriced', 'calls', 'errors'];
  const added = (sums, row) => { for (const key of SUMS) sums[key] += cells[key][row]; return sums; };
  const nothing = () => Object.fromEntries(SUMS.map(key => [key, 0]));

  // ---- time on the axis: days, or weeks and months of them
  const floors = {
    day: text => text,
    week: text => iso(day(text) - ((new Date(day(text)).getUTCDay() + 6) % 7) * DAY),
    month: text => `${text.slice(0, 7)}-01`,
  };
  const axisOf = () => {
    const labels = [], of = new Map();
    for (let index = state.from; index <= state.to; index++) {
      const name = floors[state.unit](page.buckets[index]);
      if (labels[labels.length - 1] !== name) labels.push(name);
      of.set(index, labels.length - 1);
    }
    return { labels, of };
  };
  const spoken = (labels) => {
    const years = new Set(labels.map(label => label.slice(0, 4)));
    if (state.unit === 'month') return labels.map(label => label.slice(0, 7));
    return years.size > 1 ? labels : labels.map(label => new Date(day(label)).toLocaleDateString('en-GB', { day: 'numeric', month: 'short', timeZone: 'UTC' }));
  };

  // ---- tiles
  const tiles = rows => {
    const whole = report.totals;
    const sums = filtered() ? rows.reduce(added, nothing()) : null;
    const shown = sums === null ? page.tiles : {
      cost: `${sums.unpriced ? '≥ ' : ''}${usd(sums.cost)}`, cost_at_risk: usd(sums.risk), tokens: count(sums.tokens),
      fallback_share: percent(sums.tokens ? sums.fallback / sums.tokens : null), unpriced_tokens: count(sums.unpriced),
      calls: count(sums.calls), success_rate: percent(sums.calls ? (sums.calls - sums.errors) / sums.calls : null),
    };
    for (const [key, text] of Object.entries(shown)) if (at(key)) at(key).textContent = text;
    at('scope').textContent = sums === null ? '' : `Filtered: ${Object.entries(state.only).filter(([, index]) => index !== null).map(([key, index]) => `${key} ${names(key)[index]}`).concat(`${page.buckets[state.from]} to ${page.buckets[state.to]}`).join(' · ')}`;
    return whole;
  };

  // ---- usage over time
  const time = card('Usage', { name: 'over-time', broad: true, content: () => timeTable });
  let timeTable = { columns: [], rows: [] }, chart = null;
  const drawTime = rows => {
    const { labels, of } = axisOf();
    const measure = MEASURES[state.measure];
    const weights = new Map(), values = new Map(), estimated = labels.map(() => 0), unpriced = labels.map(() => 0), risk = labels.map(() => 0);
    for (const row of rows) {
      const name = cells[state.stack][row], index = of.get(cells.at[row]);
      if (!values.has(name)) values.set(name, labels.map(() => 0));
      values.get(name)[index] += cells[state.measure][row];
      estimated[index] += cells.fallback[row];
      unpriced[index] += cells.unpriced[row];
      risk[index] += cells.risk[row];
      weights.set(name, (weights.get(name) ?? 0) + cells[state.measure][row]);
    }
    const all = names(state.stack);
    const named = [...values.keys()].filter(name => name < Math.min(MOST_SERIES, all.length - dimension(state.stack).rest)).sort((a, b) => a - b);
    const series = named.map(name => ({ id: name, name: all[name], colour: colour(name), values: values.get(name) }));
    const rest = [...values.keys()].filter(name => !named.includes(name));
    if (rest.length) {
      series.push({ id: 'rest', name: rest.length === 1 ? all[rest[0]] : 'others', colour: Charts.REST, values: labels.map((_, index) => rest.reduce((sum, name) => sum + values.get(name)[index], 0)) });
    }
    const visible = series.filter(each => !state.hidden.has(each.id));
    const text = spoken(labels);
    const marks = page.prices.filter(each => each.at >= page.buckets[state.from] && of.size).map(each => {
      const floor = floors[state.unit](each.at);
      return { index: labels.findIndex(label => label >= floor), text: `P${each.number}`, told: `P${each.number}: ${each.model} ${each.old} → ${each.new} USD per million tokens` };
    }).filter(each => each.index >= 0);
    const alarms = state.unit === 'day' && !filtered() ? page.anomalies.map(each => labels.indexOf(each.day)).filter(index => index >= 0) : [];
    const title = `${measure.title} by ${state.unit}, by ${dimension(state.stack).title}`;
    time.title(title);
    chart?.remove();
    chart = Charts.stacked(time.plot, {
      labels: text, longLabels: labels.map(tip), series: visible, format: measure.format, axisFormat: measure.axis, marks, alarms,
      hatched: state.measure === 'tokens' && !state.hidden.size && estimated.some(Boolean) ? estimated : null,
      label: `${title}. ${labels.length} ${state.unit}${labels.length === 1 ? '' : 's'}, total ${measure.format(visible.reduce((sum, each) => sum + each.values.reduce((a, b) => a + b, 0), 0))}. Arrow keys read the bars.`,
      notes: index => [
        ...(estimated[index] ? [`~ ${count(estimated[index])} tokens estimated`] : []),
        ...(unpriced[index] ? [`${count(unpriced[index])} tokens without a price`] : []),
        ...(risk[index] ? [`${usd(risk[index])} at risk`] : []),
        ...marks.filter(each => each.index === index).map(each => each.told),
      ],
      select: (from, to) => {
        const inside = [...of].filter(([, index]) => index >= from && index <= to).map(([bucket]) => bucket);
        period(Math.min(...inside), Math.max(...inside));
      },
    });
    time.keys.replaceChildren(...series.map(each => make('li', {}, make('button', {
      type: 'button', 'aria-pressed': String(!state.hidden.has(each.id)),
      onclick: () => { if (!state.hidden.delete(each.id)) state.hidden.add(each.id); draw(); },
    }, mark(each.colour), each.name))),
    ...(state.measure === 'tokens' && estimated.some(Boolean) ? [make('li', {}, make('span', { class: 'key' }, '▨ estimated (~): counted by a tokenizer, not by the provider'))] : []),
    ...marks.map(each => make('li', {}, make('span', { class: 'key' }, each.told))),
    ...(alarms.length ? [make('li', {}, make('span', { class: 'key' }, '! far from the pattern'))] : []));
    timeTable = {
      columns: [{ name: state.unit }, ...series.map(each => ({ name: each.name, number: true })), { name: `total ${measure.unit}`, number: true }, { name: 'estimated tokens', number: true }, { name: 'at risk USD', number: true }],
      rows: labels.map((label, index) => [label, ...series.map(each => number(each.values[index])), number(series.reduce((sum, each) => sum + each.values[index], 0)), { raw: estimated[index], text: estimated[index] ? `~${count(estimated[index])}` : '0' }, { raw: exact(risk[index]), text: money(risk[index]) }]),
    };
    time.fill();
  };
  const exact = value => +value.toPrecision(12);
  const number = value => (state.measure === 'cost' ? { raw: exact(value), text: money(value) } : value);

  // ---- the month
  const month = card('This month', { name: 'month', content: () => monthTable });
  let monthTable = { columns: [], rows: [] }, monthChart = null;
  const drawMonth = () => {
    const workspace = state.only.workspace ?? null;
    const found = workspace === null ? page.months[0] : page.months.find(each => each.workspace === names('workspace')[workspace]);
    month.title(`Month to date, ${page.month}${found?.workspace ? `: ${found.workspace}` : ''}`);
    monthChart?.remove();
    monthChart = null;
    if (!found) { month.plot.replaceChildren(make('p', { class: 'soft' }, 'The page holds no forecast of this workspace: `embedctl usage forecast --by workspace` has it.')); month.keys.replaceChildren(); month.note.textContent = ''; return; }
    const measure = MEASURES[found.measure];
    const labels = Array.from({ length: 31 }, (_, index) => String(index + 1));
    const line = values => labels.map((_, index) => values[index] ?? null);
    const soft = Charts.css('--soft'), accent = Charts.css('--accent');
    const spec = [
      { name: `${page.last_month}`, colour: soft, values: line(found.last), width: 1.5 },
      { name: `${page.month}`, colour: accent, values: line(found.now), width: 2.5, points: found.now.filter(value => value !== null).length < 3 },
    ];
    if (found.ahead) {
      spec.push({ name: 'expected', colour: accent, values: line(found.ahead), dash: [6, 4] },
        { name: 'at most', colour: `${accent}66`, values: line(found.high), width: 1 }, { name: 'at least', colour: `${accent}66`, values: line(found.low), width: 1 });
    }
    const said = found.ahead ? `Month's end: about ${measure.format(found.projected)}, ${measure.format(found.least)} to ${measure.format(found.most)} (${Math.round(page.confidence * 100)} % interval).` : found.reason;
    monthChart = Charts.lines(month.plot, { labels, longLabels: labels.map(label => `day ${label}`), lines: spec, band: found.ahead ? [3, 4] : null, bandColour: `${accent}22`, format: measure.format, axisFormat: measure.axis, label: `${measure.title} added up over ${page.month} and ${page.last_month}. ${said} Arrow keys read the days.` });
    month.keys.replaceChildren(...spec.slice(0, 3).map(each => make('li', {}, make('span', { class: 'key' }, mark(each.colour), each.name))), ...(found.ahead ? [make('li', {}, make('span', { class: 'key' }, mark(`${accent}44`), `${Math.round(page.confidence * 100)} % interval`))] : []));
    month.note.textContent = said + (Object.entries(state.only).some(([key, index]) => key !== 'workspace' && index !== null) ? ' Not filtered by model.' : '');
    monthTable = { columns: [{ name: 'day' }, ...spec.map(each => ({ name: each.name, number: true }))], rows: labels.map((label, index) => [label, ...spec.map(each => (each.values[index] === null ? '–' : { raw: each.values[index], text: found.measure === 'cost' ? money(each.values[index]) : count(each.values[index]) }))]) };
    month.fill();
  };

  // ---- tables
  const COLUMNS = [{ name: 'Tokens', key: 'tokens', number: true }, { name: 'Estimated', key: 'estimated_share', number: true }, { name: 'Cost, USD', key: 'cost', number: true }, { name: 'At risk, USD', key: 'cost_at_risk', number: true }, { name: 'Calls', key: 'calls', number: true }, { name: 'Errors', key: 'errors', number: true }];
  const measured = row => [
    Number(row.tokens), { raw: row.share, text: row.share ? `~${percent(row.share)}` : percent(row.share) },
    { raw: row.cost, text: row.cost === null ? 'unknown' : `${row.lower ? '≥ ' : ''}${money(Number(row.cost))}` },
    { raw: row.risk, text: row.risk === null ? 'unknown' : money(Number(row.risk)), bad: Number(row.risk) > 0 }, row.calls, { raw: row.errors, text: count(row.errors), bad: row.errors > 0 },
  ];
  const more = left => (left ? `${count(left)} more are in the totals only.` : '');
  const rowsOf = (keys, groups) => ({
    columns: [...keys.map(({ name }) => ({ name })), ...COLUMNS],
    rows: groups.map(group => [...keys.map(({ key }) => (key === 'month' ? group[key]?.slice(0, 7) : group[key])), ...measured({ tokens: group.tokens, share: group.estimated_share, cost: group.cost, lower: group.cost_is_lower_bound, risk: group.cost_at_risk, calls: group.calls, errors: group.errors })]),
  });
  const live = key => {
    const made = card(`By ${dimension(key).title}`, { name: `by-${key}`, chart: false, content: () => content });
    let content = { columns: [], rows: [] };
    made.update = rows => {
      made.note.textContent = filtered() ? '' : more(page.by[key].left);
      if (!filtered()) { // exact, and more names than the bars tell apart
        content = rowsOf([{ name: dimension(key).title, key: 'name' }], page.by[key].groups);
        made.fill();
        return;
      }
      const sums = new Map(), last = dimension(key).rest ? names(key).length - 1 : -1;
      for (const row of rows) sums.set(cells[key][row], added(sums.get(cells[key][row]) ?? nothing(), row));
      content = {
        columns: [{ name: dimension(key).title, key }, ...COLUMNS],
        rows: [...sums].sort((a, b) => (a[0] === last) - (b[0] === last) || b[1].cost - a[1].cost || b[1].tokens - a[1].tokens).map(([name, sum]) => [names(key)[name], ...measured({ tokens: sum.tokens, share: sum.tokens ? sum.fallback / sum.tokens : null, cost: sum.unpriced && !sum.cost ? null : exact(sum.cost), lower: sum.unpriced, risk: exact(sum.risk), calls: sum.calls, errors: sum.errors })]),
      };
      made.fill();
    };
    return made;
  };
  const fixed = (name, title, content, note) => {
    const made = card(title, { name, chart: false, content: () => content });
    made.note.textContent = note ?? '';
    made.whole = true;
    made.fill();
    return made;
  };
  const grouped = (name, title, keys, groups, left) => fixed(name, title, rowsOf(keys, groups), more(left));

  const tables = ['workspace', 'model'].map(live);
  const others = [];
  const asked = report.by;
  const twice = ['workspace', 'model', 'provider,model', 'model,provider'].includes(asked.join()); // a table of its own
  if (asked.length && !twice) others.push(grouped('groups', `By ${asked.join(', ')}`, asked.map(key => ({ name: key, key })), report.groups, page.groups_left));
  others.push(grouped('jobs', 'Top jobs', [{ name: 'job', key: 'name' }], page.jobs, page.jobs_left));
  for (const each of page.tags) others.push(grouped(`tag-${each.number}`, `By tag ${each.key}`, [{ name: each.key, key: 'name' }], each.groups, each.left));
  if (page.months.length > 1) {
    const part = (each, key) => ({ raw: each[key] ?? '', text: each[key] === null || each[key] === undefined ? '–' : MEASURES[each.measure].format(each[key]) });
    others.push(fixed('forecasts', `Forecast of ${page.month} by workspace`, { columns: [{ name: 'workspace' }, ...['so_far', 'projected', 'least', 'most', 'last_month'].map(key => ({ name: key.replace('_', ' '), number: true }))], rows: page.months.slice(1).map(each => [each.workspace, ...['so_far', 'projected', 'least', 'most', 'last_month'].map(key => part(each, key))]) }, page.months_left ? `${count(page.months_left)} more workspaces are not here.` : ''));
  }
  if (page.budgets.length) {
    others.push(fixed('budgets', 'Budgets', { columns: [{ name: 'workspace' }, { name: 'period' }, ...['amount', 'spent', 'at risk', 'used', 'projected'].map(name => ({ name, number: true })), { name: 'outlook' }], rows: page.budgets.map(each => [each.workspace, each.period, ...['amount', 'spent', 'at_risk'].map(key => ({ raw: each[key], text: money(Number(each[key])) })), { raw: each.used_ratio, text: percent(each.used_ratio), bad: each.used_ratio >= 1 }, { raw: each.projected, text: each.projected === null ? '–' : money(Number(each.projected)) }, { raw: each.outlook, text: each.told, bad: ['passed', 'will_pass'].includes(each.outlook) }]) }));
  }
  if (page.anomalies.length) {
    others.push(fixed('anomalies', 'Days far from the pattern', { columns: [{ name: 'day' }, { name: 'workspace' }, { name: 'job' }, { name: 'model' }, { name: 'amount', number: true }, { name: 'usual', number: true }], rows: page.anomalies.map(each => [each.day, each.workspace, each.job, each.model, ...['amount', 'expected'].map(key => ({ raw: each[key], text: MEASURES[each.measure].format(Number(each[key])), bad: key === 'amount' }))]) }));
  }
  if (page.prices.length) {
    others.push(fixed('prices', 'Price changes', { columns: [{ name: 'mark' }, { name: 'from' }, { name: 'model' }, { name: 'before*', key: 'before', number: true }, { name: 'after*', key: 'after', number: true }], rows: page.prices.map(each => [`P${each.number}`, each.at, each.model, { raw: each.old, text: each.old }, { raw: each.new, text: each.new }]) }, '* USD per million tokens'));
  }

  // ---- filters
  const select = (label, options, chosen, change) => {
    const box = make('select', { onchange: () => change(box.value) }, ...options.map(([value, text]) => make('option', { value, selected: value === chosen }, text)));
    return { label: make('label', {}, label, box), box };
  };
  const boxes = {};
  const filter = key => {
    const found = dimension(key);
    const title = found.title[0].toUpperCase() + found.title.slice(1);
    boxes[key] = select(title, [['', 'all'], ...found.names.map((name, index) => [String(index), name])], '', value => { state.only[key] = value === '' ? null : Number(value); draw(); });
    return boxes[key].label;
  };
  const dated = (label, value) => { const box = make('input', { type: 'date', value, min: page.buckets[0], max: page.last }); return { box, label: make('label', {}, label, box) }; };
  const period = (from, to) => {
    state.from = Math.max(0, from);
    state.to = Math.min(page.buckets.length - 1, Math.max(to, state.from));
    begin.box.value = page.buckets[state.from];
    end.box.value = state.to === page.buckets.length - 1 ? page.last : page.buckets[state.to];
    draw();
  };
  const indexOf = text => { let found = 0; page.buckets.forEach((bucket, index) => { if (bucket <= text) found = index; }); return found; };
  const begin = dated('From', page.buckets[0]), end = dated('To', page.last);
  for (const each of [begin, end]) each.box.addEventListener('change', () => { if (begin.box.value && end.box.value) period(indexOf(begin.box.value), indexOf(end.box.value)); });
  const measureBox = select('Measure', Object.entries(MEASURES).map(([key, each]) => [key, key === 'cost' ? 'Cost, USD' : each.title]), state.measure, value => { state.measure = value; draw(); });
  const stackBox = select('Stacked by', page.dimensions.map(each => [each.key, each.title]), state.stack, value => { state.stack = value; state.hidden.clear(); draw(); });
  const units = { day: ['day', 'week', 'month'], week: ['week', 'month'], month: ['month'] }[page.unit];
  const unitBox = select('Bars', units.map(unit => [unit, unit]), state.unit, value => { state.unit = value; draw(); });
  const reset = make('button', { type: 'button', onclick: () => { state.only = {}; state.hidden.clear(); for (const each of Object.values(boxes)) each.box.value = ''; period(0, page.buckets.length - 1); } }, 'Reset');

  const draw = () => {
    const rows = kept();
    tiles(rows);
    drawTime(rows);
    drawMonth();
    for (const each of tables) each.update(rows);
    for (const each of others) each.element.classList.toggle('unfiltered', filtered());
    at('unfiltered').classList.toggle('hidden', !filtered());
  };

  if (page.buckets.length) {
    at('filters').append(...page.dimensions.filter(each => each.names.length > 1).map(each => filter(each.key)), begin.label, end.label, measureBox.label, stackBox.label, ...(units.length > 1 ? [unitBox.label] : []), reset);
    at('charts').append(time.element, month.element, make('div', { class: 'stack' }, ...tables.map(each => each.element)));
    draw();
  } else {
    at('filters').remove();
    at('charts').append(make('p', {}, 'There is no usage here.'));
  }
  at('tables').append(...others.filter(each => page.buckets.length || !['groups', 'jobs'].includes(each.element.id)).map(each => each.element));
})();
