// Models compared: quality against cost and against bytes, the frontier marked, and everything as a table.
'use strict';
(() => {
  const { card, colour, css, make, mark, REST } = Charts;
  const page = JSON.parse(document.getElementById('page').textContent);
  const { rows, models, baseline } = page;
  const score = value => value.toFixed(3);
  const name = row => `${models[row.group]} · ${row.dimensions} · ${row.dtype}`;
  const between = pair => `${score(pair[0])} to ${score(pair[1])}`;
  const best = row => (row.pareto === null ? 'cost unknown' : row.pareto ? 'Pareto-best' : '');

  const columns = [{ name: 'Model', key: 'model' }, { name: 'Dimensions', key: 'dimensions', number: true }, { name: 'Type', key: 'dtype' },
    { name: 'Recall@1', key: 'recall_at_1', number: true }, { name: 'Recall@10', key: 'recall_at_10', number: true }, { name: 'MRR', key: 'mrr', number: true },
    { name: '95 % of MRR', key: 'mrr_interval' }, { name: 'Input USD', key: 'cost_input', number: true }, { name: 'in batches', key: 'cost_input_batch', number: true },
    { name: 'Month USD', key: 'cost_month', number: true }, { name: 'Stored', key: 'bytes', number: true }, { name: 'Time', key: 'seconds', number: true }, { name: 'Best', key: 'best' }];
  const table = () => ({ columns, rows: [
    ...rows.map(row => [models[row.group], { raw: row.dimensions, text: String(row.dimensions) }, row.dtype, { raw: row.recall_at_1, text: score(row.recall_at_1) }, { raw: row.recall_at_10, text: score(row.recall_at_10) },
      { raw: row.mrr, text: score(row.mrr) }, between(row.intervals.mrr), { raw: row.cost_input, text: row.cost_shown }, { raw: row.cost_input_batch, text: row.batch_shown ?? '–' },
      { raw: row.cost_month, text: row.month_shown }, { raw: row.bytes, text: row.bytes_shown }, { raw: row.seconds, text: row.seconds_shown ?? '–' }, best(row)]),
    [baseline.model, null, '–', { raw: baseline.recall_at_1, text: score(baseline.recall_at_1) }, { raw: baseline.recall_at_10, text: score(baseline.recall_at_10) },
      { raw: baseline.mrr, text: score(baseline.mrr) }, between(baseline.intervals.mrr), null, null, null, null, null, ''] ] });

  const lines = row => [
    { name: name(row), colour: colour(row.group) },
    { name: 'MRR', value: `${score(row.mrr)} (${between(row.intervals.mrr)})` },
    { name: 'Recall@1, @10', value: `${score(row.recall_at_1)}, ${score(row.recall_at_10)}` },
    { name: 'whole input', value: row.cost_shown === 'unknown' ? 'unknown' : `${row.cost_shown} USD` },
    { name: 'stored', value: row.bytes_shown },
    ...(best(row) ? [{ name: best(row), text: true }] : []),
  ];

  // MRR over `of(row)`, on a scale of powers of ten where no value is 0; a line joins what is best for each price or size
  const frontier = (title, id, label, of, shown) => {
    const known = rows.filter(row => of(row) !== null);
    const drawing = card(title, { name: id, content: table });
    document.getElementById('charts').append(drawing.element);
    if (!known.length) { drawing.note.textContent = 'Nobody knows what any of these costs.'; return; }
    const values = known.map(of), least = Math.min(...values), most = Math.max(...values);
    const isLog = least > 0 && most > least * 20;
    const across = row => (isLog ? Math.log10(of(row)) : of(row));
    const shades = known.map(row => colour(row.group));
    const edges = [Math.min(...known.map(across)), Math.max(...known.map(across))], span = edges[1] - edges[0];
    const low = Math.min(baseline.mrr, ...known.map(row => row.intervals.mrr[0])), high = Math.max(baseline.mrr, ...known.map(row => row.intervals.mrr[1]));
    const x = [edges[0] - (span || 1) * 0.08, edges[1] + (span || 1) * 0.08], y = [Math.max(0, low - (high - low) * 0.08), Math.min(1.02, high + (high - low) * 0.08 + 0.01)];
    const front = [...known].sort((a, b) => of(a) - of(b) || b.mrr - a.mrr).filter((row, index, sorted) => sorted.slice(0, index).every(other => other.mrr < row.mrr));
    let at = -1;
    const draw = plot => {
      const { ctx, bbox } = plot, unit = devicePixelRatio;
      const place = row => [plot.valToPos(across(row), 'x', true), plot.valToPos(row.mrr, 'y', true)];
      ctx.save();
      ctx.strokeStyle = css('--warn');
      ctx.fillStyle = css('--warn');
      ctx.lineWidth = unit;
      ctx.setLineDash([5 * unit, 4 * unit]);
      const level = plot.valToPos(baseline.mrr, 'y', true);
      ctx.beginPath();
      ctx.moveTo(bbox.left, level);
      ctx.lineTo(bbox.left + bbox.width, level);
      ctx.stroke();
      ctx.font = `${11 * unit}px system-ui,sans-serif`;
      ctx.textAlign = 'right';
      ctx.fillText(baseline.model, bbox.left + bbox.width - 4 * unit, level - 4 * unit);
      ctx.setLineDash([]);
      ctx.strokeStyle = css('--soft');
      ctx.lineWidth = 1.5 * unit;
      ctx.beginPath();
      front.forEach((row, index) => {
        const [left, top] = place(row);
        if (index) { ctx.lineTo(left, plot.valToPos(front[index - 1].mrr, 'y', true)); ctx.lineTo(left, top); } else ctx.moveTo(left, top);
      });
      ctx.stroke();
      known.forEach((row, index) => {
        const [left, top] = place(row);
        ctx.globalAlpha = row.pareto ? 1 : 0.55;
        ctx.strokeStyle = ctx.fillStyle = shades[index] ?? REST;
        ctx.lineWidth = unit;
        ctx.beginPath();
        ctx.moveTo(left, plot.valToPos(row.intervals.mrr[0], 'y', true));
        ctx.lineTo(left, plot.valToPos(row.intervals.mrr[1], 'y', true));
        ctx.stroke();
        ctx.beginPath();
        if (row.dtype === 'int8') ctx.rect(left - 4 * unit, top - 4 * unit, 8 * unit, 8 * unit);
        else ctx.arc(left, top, 5 * unit, 0, 7);
        ctx.fill();
        if (row.pareto || index === at) {
          ctx.globalAlpha = 1;
          ctx.strokeStyle = css('--fg');
          ctx.lineWidth = (index === at ? 2.5 : 1.2) * unit;
          ctx.stroke();
        }
      });
      ctx.restore();
    };
    const nearest = (plot, left, top) => {
      let found = -1, close = 400; // pixels, squared
      known.forEach((row, index) => {
        const wide = plot.valToPos(across(row), 'x') - left, high = plot.valToPos(row.mrr, 'y') - top, distance = wide * wide + high * high;
        if (distance < close) { close = distance; found = index; }
      });
      return found;
    };
    const words = value => (value < 0 && !isLog ? '' : shown(isLog ? 10 ** value : value));
    Charts.mount(drawing.plot, {
      padding: [10, 14, 0, 0],
      scales: { x: { time: false, range: () => x }, y: { range: () => y } },
      axes: [Charts.axis({ label, labelSize: 22, labelFont: '12px system-ui,sans-serif', size: 34, values: (_, splits) => splits.map(words), space: 70, ...(span ? {} : { splits: () => [edges[0]] }) }),
        Charts.axis({ label: 'MRR', labelSize: 22, labelFont: '12px system-ui,sans-serif', size: 50 })],
      series: [{}, { paths: () => null, points: { show: false } }],
      cursor: { drag: { x: false, y: false }, points: { show: false } },
      hooks: { draw: [draw] },
    }, [x, y], {
      label: `${title}. ${known.length} points. Arrow keys go from point to point.`, points: known.length, height: 340,
      describe: (_, plot, index) => { at = index ?? nearest(plot, plot.cursor.left, plot.cursor.top); plot.redraw(false, false); return at < 0 ? null : lines(known[at]); },
      place: index => [across(known[index]), known[index].mrr],
    });
    drawing.keys.append(...models.map((each, index) => make('li', {}, make('span', { class: 'key' }, mark(colour(index)), each))),
      make('li', {}, make('span', { class: 'key' }, '● float32  ■ int8  outlined: Pareto-best')));
    const left = rows.length - known.length;
    if (left) drawing.note.textContent = `${left} without a known price are not drawn.`;
  };

  const size = value => { for (const [many, unit] of [[1e12, 'TB'], [1e9, 'GB'], [1e6, 'MB'], [1e3, 'kB']]) if (value >= many) return `${+(value / many).toPrecision(3)} ${unit}`; return `${Math.round(value)} B`; };
  frontier('Quality and what the whole input costs', 'cost', 'USD for the whole input', row => row.cost, value => Charts.money(Math.max(0, value)));
  frontier('Quality and what is stored', 'stored', 'bytes of all vectors', row => row.bytes, value => size(Math.max(0, value)));
  const all = card('All of them', { name: 'models', content: table, broad: true, chart: false });
  document.getElementById('charts').append(all.element);
  all.fill();
})();
