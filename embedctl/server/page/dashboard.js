// The dashboard: what /api/v1/embeddings/usage/summary says, asked for again while somebody looks.
'use strict';
(() => {
  const { card, colour, count, make, mark, money, percent, short, REST } = Charts;
  const ADDRESS = '/api/v1/embeddings/usage/summary';
  const KEPT = 'embedctl key'; // for this tab alone, and only until it is closed
  const EVERY_MS = 10000;
  const at = id => document.getElementById(id);
  const usd = amount => (amount === null || amount === undefined ? 'unknown' : `${money(Number(amount))} USD`);
  const least = (amount, lower) => `${lower && amount !== null ? '≥ ' : ''}${usd(amount)}`;
  const share = part => (part ? `~${percent(part)}` : percent(part));
  const milliseconds = number => (number === null ? '–' : `${count(number)} ms`);
  const MEASURES = {
    cost: { title: 'Cost', format: usd, axis: value => (Math.abs(value) >= 1000 ? short(value) : money(value)) },
    tokens: { title: 'Tokens', format: count, axis: short },
    calls: { title: 'Calls', format: count, axis: short },
  };
  const state = { found: null, drawn: '', measure: null, stack: 'model', timer: 0, asking: false };

  // ---- the key
  const kept = () => { try { return sessionStorage.getItem(KEPT) ?? ''; } catch { return state.key ?? ''; } };
  const keep = key => {
    state.key = key;
    try { if (key) sessionStorage.setItem(KEPT, key); else sessionStorage.removeItem(KEPT); } catch { /* memory does */ }
  };
  const enter = why => {
    clearTimeout(state.timer);
    keep('');
    at('board').classList.add('hidden');
    at('enter').classList.remove('hidden');
    at('why').textContent = why;
    at('key').value = '';
    at('key').focus();
  };

  // ---- tiles
  const tile = (id, name, value, bad) => make('div', { class: bad ? 'tile alarm' : 'tile' }, make('b', { id }, value), make('span', {}, name));
  const tiles = (id, of) => at(id).replaceChildren(
    tile(`${id}-cost`, 'Cost', least(of.cost, of.cost_is_lower_bound)),
    tile(`${id}-tokens`, `Tokens, ${of.fallback_share ? `${share(of.fallback_share)} counted here` : 'counted by providers'}`, count(Number(of.tokens))),
    tile(`${id}-calls`, 'Calls to providers', count(of.calls)),
    tile(`${id}-errors`, 'Errors', count(of.errors), of.errors > 0),
    tile(`${id}-hits`, `Texts from the cache, of ${count(of.cache_hits + of.texts_bought)}`, count(of.cache_hits)),
    tile(`${id}-latency`, `Provider's answer, median; 95 %: ${milliseconds(of.latency_ms.p95)}`, milliseconds(of.latency_ms.median)),
    tile(`${id}-risk`, 'At risk: sent, no answer', usd(of.cost_at_risk), Number(of.cost_at_risk) > 0),
  );

  // ---- the chart
  const amounts = one => one[state.measure].map(Number);
  const series = () => state.found.by_day[state.stack];
  const sums = (key, pick = Number) => state.found.days.map((_, index) => series().reduce((sum, one) => sum + pick(one[key][index]), 0));
  const time = card('', {
    name: 'days', broad: true, content: () => ({
      columns: [{ name: 'day' }, ...series().map(one => ({ name: one.name, number: true })), { name: 'total', number: true }],
      rows: state.found.days.map((day, index) => {
        const parts = series().map(one => one[state.measure][index]);
        const shown = value => (state.measure === 'cost' ? { raw: value, text: money(Number(value)) } : Number(value));
        return [day, ...parts.map(shown), shown(parts.reduce((sum, part) => sum + Number(part), 0))];
      }),
    }),
  });
  let chart = null;
  const drawDays = () => {
    const measure = MEASURES[state.measure];
    time.title(`${measure.title} by day and ${state.stack}, ${state.found.days.length} days`);
    const rows = series().map((one, index) => ({ name: one.name, colour: one.name === 'others' ? REST : colour(index), values: amounts(one) }));
    if (chart) chart.remove();
    chart = null;
    if (rows.length) {
      const estimated = sums('estimated'), errors = sums('errors');
      chart = Charts.stacked(time.plot, {
        labels: state.found.days.map(day => day.slice(5)), longLabels: state.found.days, series: rows, format: measure.format, axisFormat: measure.axis,
        hatched: state.measure === 'tokens' ? estimated : null,
        notes: index => [...(estimated[index] ? [`${count(estimated[index])} tokens counted here`] : []), ...(errors[index] ? [`${count(errors[index])} errors`] : [])],
        label: `${measure.title} by day and ${state.stack}. Arrow keys read the days.`, space: 48,
      });
    } else time.plot.replaceChildren(make('p', { class: 'soft' }, 'There is no usage in these days.'));
    time.keys.replaceChildren(...rows.map(one => make('li', {}, make('span', { class: 'key' }, mark(one.colour), one.name))));
    const lower = series().filter(one => one.lower).length;
    time.note.textContent = [
      state.measure === 'tokens' && sums('estimated').some(Boolean) ? 'Hatched: counted here, not by the provider.' : '',
      state.measure === 'cost' && lower ? 'Some usage has no price: bars are a lower bound.' : '',
    ].filter(Boolean).join(' ');
    time.fill();
  };

  // ---- tables
  const COLUMNS = [{ name: 'Tokens', number: true }, { name: 'Estimated', number: true }, { name: 'Cost, USD', number: true }, { name: 'At risk, USD', number: true }, { name: 'Calls', number: true }, { name: 'Errors', number: true }];
  const amount = (value, lower) => ({ raw: value, text: value === null ? 'unknown' : `${lower ? '≥ ' : ''}${money(Number(value))}` });
  const usage = (title, found) => ({
    note: found.left ? `${count(found.left)} more are in the totals only.` : '',
    columns: [{ name: title }, ...COLUMNS],
    rows: found.rows.map(row => [
      row.name, Number(row.tokens), { raw: row.estimated_share, text: share(row.estimated_share) }, amount(row.cost, row.cost_is_lower_bound),
      { ...amount(row.cost_at_risk), bad: Number(row.cost_at_risk) > 0 }, row.calls, { raw: row.errors, text: count(row.errors), bad: row.errors > 0 },
    ]),
  });
  const money2 = (value, bad) => ({ ...amount(value), bad });
  const TABLES = {
    models: { title: 'Models, this month', content: () => usage('model', state.found.of_month_by.model) },
    workspaces: { title: 'Workspaces, this month', shown: () => state.found.of_month_by.workspace, content: () => usage('workspace', state.found.of_month_by.workspace) },
    budgets: {
      title: 'Budgets', content: () => ({
        note: state.found.budgets.length ? '' : 'None is set.',
        columns: [{ name: 'whose' }, { name: 'period' }, ...['amount', 'spent', 'at risk', 'left', 'used'].map(name => ({ name, number: true })), { name: 'state' }],
        rows: state.found.budgets.map(one => [
          one.key ? `key ${one.key}${one.key_name ? ` (${one.key_name})` : ''} of ${one.workspace}` : one.workspace, one.period, money2(one.amount), money2(one.spent),
          money2(one.at_risk, Number(one.at_risk) > 0), money2(one.remaining), { raw: one.used_ratio, text: percent(one.used_ratio), bad: one.used_ratio >= 1 },
          { raw: one.state, text: one.state, bad: one.state !== 'ok' },
        ]),
      }),
    },
    circuits: {
      title: 'Circuits', content: () => ({
        note: state.found.circuits.length ? '' : 'No provider was asked since the service began.',
        columns: [{ name: 'provider' }, { name: 'state' }, { name: 'failures', number: true }],
        rows: state.found.circuits.map(one => [one.provider, { raw: one.state, text: one.state.replace('_', ' '), bad: one.state !== 'closed' }, one.failure_count]),
      }),
    },
  };
  const cards = Object.entries(TABLES).map(([name, about]) => {
    const made = card(about.title, { name, chart: false, content: about.content });
    return { ...about, made };
  });

  // ---- all of it
  const select = (label, options, change) => {
    const box = make('select', { onchange: () => change(box.value) });
    const fill = (pairs, chosen) => box.replaceChildren(...pairs.map(([value, text]) => make('option', { value, selected: value === chosen }, text)));
    fill(options);
    return { label: make('label', {}, label, box), box, fill };
  };
  const measureBox = select('Measure', Object.entries(MEASURES).map(([key, each]) => [key, each.title]), value => { state.measure = value; drawDays(); });
  const stackBox = select('By', [['model', 'model']], value => { state.stack = value; drawDays(); });
  at('filters').append(measureBox.label, stackBox.label);
  at('charts').append(time.element);
  at('tables').append(...cards.map(each => each.made.element));

  const draw = found => {
    state.found = found;
    const known = Object.keys(found.by_day);
    if (!known.includes(state.stack)) state.stack = 'model';
    if (state.measure === null && found.by_day.model.length) state.measure = found.by_day.model.some(one => one.cost.some(Number)) ? 'cost' : 'tokens';
    at('enter').classList.add('hidden');
    at('board').classList.remove('hidden');
    at('whose').textContent = found.everybody ? 'all workspaces' : `workspace ${found.workspace}`;
    const complete = new Date(found.as_of);
    at('as-of').textContent = `complete until ${complete.toLocaleTimeString()} · days in ${found.timezone}${found.active_requests === null ? '' : ` · ${count(found.active_requests)} requests in flight`}`;
    at('as-of').classList.remove('stale');
    at('today-title').textContent = `Today, ${found.today}`;
    at('month-title').textContent = `This month, ${found.month}`;
    tiles('today', found.of_today);
    tiles('month', found.of_month);
    const waiting = found.pending ? [`${count(found.pending.tokens)} tokens wait in batches at providers: not in the cost`] : [];
    at('warnings').replaceChildren(...[...waiting, ...found.warnings].slice(0, 8).map(line => make('p', { class: 'warn' }, line)));
    measureBox.box.value = state.measure ?? (state.measure = 'tokens');
    stackBox.fill(known.map(name => [name, name]), state.stack);
    stackBox.label.classList.toggle('hidden', known.length < 2);
    const content = JSON.stringify([found.days, found.by_day]);
    if (content !== state.drawn || !chart) drawDays(); // what nobody's usage has changed stays as it is read
    state.drawn = content;
    for (const each of cards) {
      const shown = each.shown ? Boolean(each.shown()) : true;
      each.made.element.classList.toggle('hidden', !shown);
      if (!shown) continue;
      each.made.note.textContent = each.content().note ?? '';
      each.made.fill();
    }
  };

  const again = () => { clearTimeout(state.timer); if (!document.hidden) state.timer = setTimeout(look, EVERY_MS); };
  const ask = async (address, key) => fetch(address, { headers: key ? { 'X-API-KEY': key } : {}, cache: 'no-store', credentials: 'omit' });
  const look = async () => {
    if (state.asking) return;
    state.asking = true;
    const key = kept();
    try {
      if (!key && !('circuit_breakers' in await (await ask('/api/v1/embeddings/health', '')).json())) { // strangers see less of it
        enter('');
        return;
      }
      const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || 'UTC';
      const answer = await ask(`${ADDRESS}?timezone=${encodeURIComponent(zone)}`, key);
      const found = await answer.json();
      if (answer.ok) {
        at('forget').classList.toggle('hidden', !key);
        draw(found);
      } else if (answer.status === 401) {
        enter(key ? found.error.message : '');
        return;
      } else throw new Error(found.error?.message ?? `status ${answer.status}`);
    } catch (problem) {
      at('as-of').textContent = `not up to date: ${problem.message}`;
      at('as-of').classList.add('stale');
      at('why').textContent = `no answer: ${problem.message}`;
    } finally {
      state.asking = false;
    }
    again();
  };

  at('enter').querySelector('form').addEventListener('submit', event => {
    event.preventDefault();
    keep(at('key').value.trim());
    at('key').value = '';
    look();
  });
  at('forget').addEventListener('click', () => enter(''));
  document.addEventListener('visibilitychange', () => { if (!document.hidden && !at('board').classList.contains('hidden')) look(); });
  look();
})();
