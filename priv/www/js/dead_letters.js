// SPDX-License-Identifier: MPL-2.0

// Dead-lettering in the management pages: the traps that are found in it, a drawing of where dead
// letters go, and what is in a queue of them. It comes from /api/dead-lettering and /api/dead-letters,
// and is made of what delayed.js offers as DelayedPages.
//
// Longer than other files are, as the management pages load one script for an extension.

(function () {
'use strict';

const SVG = 'http://www.w3.org/2000/svg';

// More is no drawing any more; then what is red is drawn, or what is asked for.
const MAX_NODES = 150;

// Of the queues that dead letters go to, listed.
const MAX_QUEUES = 100;

// Of those, asked for what lies at their heads.
const MAX_HEADS = 20;

// What the broker counts of messages that leave a queue for good.
const GONE = ['ack', 'deliver_no_ack', 'get_no_ack'];

// Of the findings of a rule, until one asks for more.
const SHOWN_OF_RULE = 5;

const RED = '#cc3333';

const SEVERITY_COLOURS = {error: 'red', warning: 'yellow', info: 'green'};

function pages() {
    return window.DelayedPages;
}

function page_url(vhost, queue) {
    return '#/dead-letters/' + esc(vhost) + '/' + esc(queue);
}

function api_path(vhost, queue) {
    return '/dead-letters/' + esc(vhost) + '/' + esc(queue);
}

function show(id, html) {
    $('#main #' + id).html(html.html);
}

// ------------------------------------------------------------------------------ the traps

let loading = 0;

function chosen_vhost() {
    return typeof current_vhost === 'string' ? current_vhost : '';
}

function render_dead_lettering() {
    render({}, 'dead-lettering', '#/dead-lettering');
}

// The broker's pages put this in the place of the one before some time after it is made, as when another
// virtual host is chosen. What was asked for before must not fill it.
function dead_lettering_page() {
    const mine = ++loading;
    const begin = function (looks) {
        if (mine !== loading) return;
        if ($('#main #dead-lettering-findings').is(':empty')) {
            check();
            watch_all();
        } else if (looks > 0) {
            setTimeout(begin, 50, looks - 1);
        }
    };
    setTimeout(begin, 0, 200);
    return pages().HTML`
<h1 class="delayed-page">Dead letters</h1>
<div class="section">
  <h2>Traps</h2>
  <div class="hider">
    <div id="dead-lettering-findings"></div>
    <p><button data-dead-letters="check">Check again</button></p>
  </div>
</div>
<div class="section">
  <h2>Where dead letters go</h2>
  <div class="hider"><div id="dead-lettering-graph"></div></div>
</div>
<div class="section">
  <h2>Look into a queue</h2>
  <div class="hider">
    <table class="form delayed-form">
      <tr>
        <th><label>Virtual host:</label></th>
        <td><input type="text" id="dead-letters-vhost" value="${chosen_vhost() || '/'}"/></td>
        <th><label>Queue:</label></th>
        <td><input type="text" id="dead-letters-queue"/></td>
        <td><button data-dead-letters="look">Look</button></td>
      </tr>
    </table>
    <div id="dead-lettering-redrives"></div>
  </div>
</div>`;
}

function check() {
    const HTML = pages().HTML, vhost = chosen_vhost(), mine = ++loading;
    show('dead-lettering-findings', HTML`<p>Checking ...</p>`);
    $('#main #dead-lettering-findings').removeAttr('data-vhost');
    pages().request('GET', '/dead-lettering' + (vhost === '' ? '' : '/' + esc(vhost)), null,
                    function (answer) {
        if (mine !== loading) return;
        show('dead-lettering-findings', findings(answer));
        $('#main #dead-lettering-findings').attr('data-vhost', vhost);
        show_graphs(vhost !== '' ? [vhost] : vhosts_of(answer), mine);
    }, function (why) {
        if (mine === loading) show('dead-lettering-findings', HTML`<p class="warning">${why}</p>`);
    });
}

// Without a choice, those in which something was found; else the default one.
function vhosts_of(answer) {
    const names = {};
    answer.findings.forEach(function (finding) { names[finding.vhost] = true; });
    return Object.keys(names).length == 0 ? ['/'] : Object.keys(names).sort();
}

// One group a rule and severity, in the order in which the worst come first.
function by_rule(found) {
    const groups = {}, order = [];
    found.forEach(function (finding) {
        const name = finding.severity + ' ' + finding.rule;
        if (groups[name] === undefined) order.push(groups[name] = []);
        groups[name].push(finding);
    });
    return order;
}

function findings(answer) {
    const HTML = pages().HTML;
    const accepted = answer.accepted.length > 0 && HTML`<p id="dead-lettering-accepted">Accepted: ${
        answer.accepted.map(function (finding) {
            return HTML`<br/>${finding.rule}, ${finding.kind} <b>${finding.name}</b>: ${finding.accepted}`;
        })}</p>`;
    if (answer.findings.length == 0) return HTML`<p>... no traps ...</p>${accepted}`;
    return HTML`
<div class="delayed-wide"><table class="list" id="dead-lettering-table">
  <thead>
    <tr><th>Severity</th><th>Trap</th><th>Virtual host</th><th>Of</th><th>Why it bites, and what
    mends it</th></tr>
  </thead>
  ${by_rule(answer.findings).map(function (group) {
      const first = group[0], more = group.length - SHOWN_OF_RULE;
      return HTML`
  <tbody class="dead-lettering-group" data-rule="${first.rule}">
    <tr>
      <td>${pages().safe(fmt_state(SEVERITY_COLOURS[first.severity], first.severity, ''))}</td>
      <td><b>${first.rule}</b></td>
      <td colspan="3">${group.length == 1 ? 'once' : fmt_num_thousands(group.length) + ' times'}</td>
    </tr>${group.map(function (finding, i) {
        return HTML`
    <tr class="${i < SHOWN_OF_RULE ? 'dead-lettering-finding' : 'dead-lettering-finding dead-lettering-more'}"${
        pages().safe(i < SHOWN_OF_RULE ? '' : ' style="display: none"')}>
      <td colspan="2"></td>
      <td>${finding.vhost}</td>
      <td>${finding.kind} ${finding.kind == 'queue'
          ? HTML`<a href="${page_url(finding.vhost, finding.name)}">${finding.name}</a>`
          : HTML`<b>${finding.name}</b>`}</td>
      <td>
        <p>${finding.why}</p>
        <p>${finding.mend}</p>
        ${finding.commands.length > 0 && HTML`<pre class="msg-payload"
            style="max-width: 560px; min-width: 200px; white-space: pre-wrap; overflow-wrap: anywhere;">${
            finding.commands.join('\n')}</pre>`}
      </td>
    </tr>`;
    })}${more > 0 && HTML`
    <tr><td colspan="2"></td><td colspan="3"><button data-dead-letters="all_of_rule">Show ${
        fmt_num_thousands(more)} more</button></td></tr>`}
  </tbody>`;
  })}
</table></div>${accepted}`;
}

// ------------------------------------------------------------------------------ the drawing

function show_graphs(vhosts, mine) {
    const HTML = pages().HTML;
    show('dead-lettering-graph', HTML``);
    vhosts.forEach(function (vhost) {
        pages().request('GET', '/dead-lettering/' + esc(vhost) + '/graph', null, function (graph) {
            if (mine !== loading) return;
            const place = $('#main #dead-lettering-graph');
            place.append(HTML`<h3>Virtual host ${vhost}</h3>`.html);
            if (graph.nodes.length == 0) {
                place.append(HTML`<p>... no queue dead-letters ...</p>`.html);
                return;
            }
            const filter = $('<input type="text" class="dead-lettering-filter" size="30"/>')
                .attr('placeholder', 'only what leads to or from ...');
            const list = $('<div></div>'), box = $('<div></div>');
            const draw = function () {
                const text = $.trim(filter.val());
                list.html(queues_of_dead_letters(vhost, graph, text).html);
                draw_part(box, vhost, graph, text);
            };
            let typed = null;
            filter.on('input', function () {
                clearTimeout(typed);
                typed = setTimeout(draw, 200);
            });
            place.append($('<p></p>').append(filter), list, box);
            draw();
            const current = function () { return mine === loading; };
            with_rates(vhost, graph, function () {
                if (current()) draw();
                with_heads(vhost, graph, current, draw);
            });
        });
    });
}

// Those that dead letters go to, the fullest first.
function targets_of(graph) {
    const reached = {};
    graph.edges.forEach(function (edge) { reached[edge[1]] = true; });
    return graph.nodes.filter(function (node, i) {
        return node.kind == 'queue' && reached[i];
    }).sort(function (a, b) { return (b.messages || 0) - (a.messages || 0); });
}

function queues_of_dead_letters(vhost, graph, text) {
    const HTML = pages().HTML, lower = text.toLowerCase();
    const queues = targets_of(graph).filter(function (node) {
        return node.name.toLowerCase().indexOf(lower) >= 0;
    });
    if (queues.length == 0) return HTML``;
    return HTML`
<div class="delayed-wide"><table class="list dead-lettering-queues">
  <thead><tr><th>Queue</th><th>Messages</th>
    <th><abbr class="normal" title="What is consumed and by how much it grows: RabbitMQ does not count dead letters as they come">Come in</abbr></th>
    <th>Grows by</th><th>Consumers</th>
    <th><abbr class="normal" title="When the message at its head died last: of quorum queues, where looking changes nothing, ${
        MAX_HEADS} of them">Oldest death</abbr></th></tr></thead>
  <tbody>${queues.slice(0, MAX_QUEUES).map(function (queue, i) {
      return HTML`
    <tr${pages().safe(alt_rows(i))}>
      <td><a href="${page_url(vhost, queue.name)}">${queue.name}</a></td>
      <td class="r">${queue.messages === undefined ? '' : fmt_num_thousands(queue.messages)}</td>
      <td class="r">${rate_text(queue.rate)}</td>
      <td class="r">${rate_text(queue.growth)}</td>
      <td class="r">${queue.consumers}</td>
      <td class="r">${queue.oldest !== undefined && pages().duration(1000 * queue.oldest) + ' ago'}</td>
    </tr>`;
  })}
  </tbody>
</table></div>
${queues.length > MAX_QUEUES && HTML`<p>... and ${queues.length - MAX_QUEUES} that hold less</p>`}`;
}

function rate_text(rate) {
    return rate === undefined ? '' : fmt_num_thousands(Math.round(10 * rate) / 10) + '/s';
}

function is_red(node) {
    return node.leads_nowhere === true || node.circle !== undefined;
}

// The part of the graph that leads to or from nodes that are wanted.
function part_of(graph, wanted) {
    const to = graph.nodes.map(function () { return []; }), from = to.map(function () { return []; });
    graph.edges.forEach(function (edge) {
        to[edge[0]].push(edge[1]);
        from[edge[1]].push(edge[0]);
    });
    const keep = {};
    [to, from].forEach(function (next) {
        const seen = {}, left = [];
        graph.nodes.forEach(function (node, i) { if (wanted(node)) left.push(i); });
        while (left.length > 0) {
            const i = left.pop();
            if (seen[i]) continue;
            seen[i] = keep[i] = true;
            left.push.apply(left, next[i]);
        }
    });
    const number = {}, nodes = [];
    graph.nodes.forEach(function (node, i) {
        if (keep[i]) number[i] = nodes.push(node) - 1;
    });
    return {nodes: nodes, edges: graph.edges.filter(function (edge) {
        return keep[edge[0]] && keep[edge[1]];
    }).map(function (edge) { return [number[edge[0]], number[edge[1]]]; })};
}

function draw_part(box, vhost, graph, text) {
    const HTML = pages().HTML, all = graph.nodes.length, much = all > MAX_NODES;
    const lower = text.toLowerCase();
    const part = text !== '' ? part_of(graph, function (node) {
        return node.name.toLowerCase().indexOf(lower) >= 0;
    }) : much ? part_of(graph, is_red) : graph;
    const of = (graph.truncated ? 'more than ' : '') + all;
    box.empty();
    if (part.nodes.length == 0) {
        box.append(HTML`<p>${text !== '' ? 'Nothing has that in its name.'
            : 'None of ' + of + ' queues and exchanges leads nowhere or in a circle.'}</p>`.html);
    } else if (part.nodes.length > 4 * MAX_NODES) {
        box.append(HTML`<p>These are too many queues and exchanges to draw (${part.nodes.length} of ${
            of}): write a part of a name above.</p>`.html);
    } else {
        if (much && text === '') {
            box.append(HTML`<p>Of ${of} queues and exchanges those are drawn that have to do with what
                leads nowhere or in a circle.</p>`.html);
        }
        box.append($('<div class="box delayed-wide" style="overflow: auto; max-height: 900px"></div>').append(
            drawing(vhost, part)));
    }
}

// What queues take in and by how much they grow, messages a second, and who consumes from them, as the
// management plugin knows it.
function with_rates(vhost, graph, done) {
    pages().request('GET', '/queues/' + esc(vhost) + '?columns=name,type,consumers,messages_details.rate,'
                    + ['publish'].concat(GONE).map(function (name) {
                        return 'message_stats.' + name + '_details.rate';
                    }).join(), null, function (queues) {
        const known = {};
        if (!Array.isArray(queues)) return;
        queues.forEach(function (queue) { known['q' + queue.name] = queue; });
        graph.nodes.forEach(function (node) {
            const queue = node.kind == 'queue' && known['q' + node.name];
            if (!queue) return;
            const stats = queue.message_stats || {}, rate = function (name) {
                return (stats[name + '_details'] || {rate: 0}).rate;
            };
            if (queue.messages_details) {
                node.growth = queue.messages_details.rate;
                // The broker counts what is published, and no dead letters that come in.
                node.rate = GONE.reduce(function (sum, name) { return sum + rate(name); }, node.growth);
                node.rate = Math.max(node.rate, rate('publish'));
            }
            node.consumers = queue.consumers;
            node.type = queue.type;
        });
        done();
    }, function () {});
}

// When the message at the head of each died last, one queue after the other. A queue is not read for it.
function with_heads(vhost, graph, current, done) {
    const queues = targets_of(graph).filter(function (queue) {
        return queue.type == 'quorum';
    }).slice(0, MAX_HEADS);
    (function next(i) {
        if (!current()) return;
        if (i == queues.length) {
            if (queues.some(function (queue) { return queue.oldest !== undefined; })) done();
            return;
        }
        pages().request('GET', api_path(vhost, queues[i].name) + '?max=1', null, function (answer) {
            const head = answer.groups[0];
            if (head !== undefined && head.reason !== '') queues[i].oldest = head.oldest_s;
            next(i + 1);
        }, function () { next(i + 1); }, true);
    })(0);
}

// The layer of each node: behind all that lead to it, but by the edges that close a circle.
function layered(graph) {
    const next = graph.nodes.map(function () { return []; });
    graph.edges.forEach(function (edge) { next[edge[0]].push(edge[1]); });
    const state = graph.nodes.map(function () { return 0; }), order = [], back = {};
    const has_source = graph.nodes.map(function () { return false; });
    graph.edges.forEach(function (edge) { has_source[edge[1]] = true; });
    function visit(root) {
        const stack = [[root, 0]];
        state[root] = 1;
        while (stack.length > 0) {
            const top = stack[stack.length - 1], from = top[0];
            if (top[1] == next[from].length) {
                state[from] = 2;
                order.push(from);
                stack.pop();
            } else {
                const to = next[from][top[1]++];
                if (state[to] == 1) back[from + ' ' + to] = true;
                if (state[to] == 0) {
                    state[to] = 1;
                    stack.push([to, 0]);
                }
            }
        }
    }
    graph.nodes.forEach(function (_, i) { if (!has_source[i] && state[i] == 0) visit(i); });
    graph.nodes.forEach(function (_, i) { if (state[i] == 0) visit(i); });
    const layer = graph.nodes.map(function () { return 0; });
    order.reverse().forEach(function (from) {
        next[from].forEach(function (to) {
            if (!back[from + ' ' + to]) layer[to] = Math.max(layer[to], layer[from] + 1);
        });
    });
    return {layer: layer, is_back: function (from, to) { return back[from + ' ' + to] === true; }};
}

// In each layer by the mean place of what leads there.
function placed(graph, layer) {
    const layers = [];
    layer.forEach(function (n, i) { (layers[n] = layers[n] || []).push(i); });
    const place = [];
    layers.forEach(function (nodes) { nodes.forEach(function (i, n) { place[i] = n; }); });
    layers.slice(1).forEach(function (nodes) {
        const mean = {};
        nodes.forEach(function (i) {
            const from = graph.edges.filter(function (edge) {
                return edge[1] == i && layer[edge[0]] < layer[i];
            }).map(function (edge) { return place[edge[0]]; });
            mean[i] = from.length == 0 ? place[i]
                : from.reduce(function (a, b) { return a + b; }, 0) / from.length;
        });
        nodes.sort(function (a, b) { return mean[a] - mean[b]; });
        nodes.forEach(function (i, n) { place[i] = n; });
    });
    return {layers: layers, place: place};
}

function svg(name, attributes, parent) {
    const element = document.createElementNS(SVG, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (parent) parent.appendChild(element);
    return element;
}

const NODE_STYLES = {queue: {fill: '#e5efff', stroke: '#7090c0'},
                     exchange: {fill: '#f4f4f4', stroke: '#999999'},
                     missing_exchange: {fill: '#ffe0e0', stroke: '#cc3333'}};

function label_of(node) {
    const name = node.name === '' && node.kind == 'exchange' ? '(default)' : node.name;
    return name.length > 28 ? name.substring(0, 27) + '\u2026' : name;
}

function detail_of(node) {
    if (node.kind == 'queue') {
        return 'queue' + (node.messages === undefined ? '' : ', ' + fmt_num_thousands(node.messages))
            + (node.rate > 0 ? ', ' + rate_text(node.rate) : '');
    }
    if (node.kind == 'missing_exchange') return 'no such exchange';
    const key = node.key === null || node.key === undefined ? 'any key' : 'key ' + node.key;
    return key.length > 34 ? key.substring(0, 33) + '\u2026' : key;
}

// Texts go into it as text, never as markup.
function drawing(vhost, graph) {
    const width = 210, height = 36, across = 290, down = 54;
    const found = layered(graph), layout = placed(graph, found.layer);
    const tallest = Math.max.apply(null, layout.layers.map(function (nodes) {
        return nodes.length;
    }));
    const has_back = graph.edges.some(function (edge) { return found.is_back(edge[0], edge[1]); });
    const margin = has_back ? 45 : 12;
    const total = {width: 2 * margin + across * (layout.layers.length - 1) + width,
                   height: 2 * margin + down * (tallest - 1) + height + (has_back ? 40 : 0)};
    // As wide as the page, as long as its texts can be read.
    const root = svg('svg', {'class': 'dead-letter-graph', width: total.width, height: total.height,
                             viewBox: '0 0 ' + total.width + ' ' + total.height, role: 'img',
                             style: 'max-width: 100%; height: auto; min-width: '
                                 + Math.round(0.6 * total.width) + 'px'});
    svg('title', {}, root).textContent = 'Where dead letters of virtual host ' + vhost + ' go';
    const at = function (i) {
        return {x: margin + across * found.layer[i], y: margin + down * layout.place[i]};
    };
    graph.edges.forEach(function (edge) {
        const from = at(edge[0]), to = at(edge[1]);
        const back = found.is_back(edge[0], edge[1]);
        const circle = graph.nodes[edge[0]].circle;
        const red = back || (circle !== undefined && circle === graph.nodes[edge[1]].circle);
        const x1 = from.x + width, y1 = from.y + height / 2, x2 = to.x, y2 = to.y + height / 2;
        const low = total.height - 12;
        const d = back ? 'M' + x1 + ' ' + y1 + ' C' + (x1 + 40) + ' ' + low + ' ' + (x1 + 20) + ' '
                + low + ' ' + (x1 - 20) + ' ' + low + ' L' + (x2 + 20) + ' ' + low + ' C' + (x2 - 30)
                + ' ' + low + ' ' + (x2 - 40) + ' ' + y2 + ' ' + x2 + ' ' + y2
            : 'M' + x1 + ' ' + y1 + ' C' + (x1 + 40) + ' ' + y1 + ' ' + (x2 - 40) + ' ' + y2 + ' '
                + x2 + ' ' + y2;
        svg('path', {d: d, fill: 'none', stroke: red ? RED : '#888888', 'stroke-width': 1.5,
                     'class': back ? 'back' : 'forward'}, root);
        svg('path', {d: 'M' + (x2 - 7) + ' ' + (y2 - 4) + ' L' + x2 + ' ' + y2 + ' L' + (x2 - 7) + ' '
                     + (y2 + 4), fill: 'none', stroke: red ? RED : '#888888',
                     'stroke-width': 1.5}, root);
    });
    graph.nodes.forEach(function (node, i) {
        const place = at(i), style = NODE_STYLES[node.leads_nowhere ? 'missing_exchange' : node.kind];
        const link = node.kind == 'queue' ? svg('a', {href: page_url(vhost, node.name)}, root)
            : svg('g', {}, root);
        svg('title', {}, link).textContent = node.name
            + (typeof node.key === 'string' ? ', key ' + node.key : '');
        svg('rect', {x: place.x, y: place.y, width: width, height: height,
                     rx: node.kind == 'queue' ? 3 : 16, fill: style.fill,
                     stroke: is_red(node) ? RED : style.stroke,
                     'class': is_red(node) ? 'red' : 'sound'}, link);
        svg('text', {x: place.x + width / 2, y: place.y + 15, 'text-anchor': 'middle',
                     'font-size': 12, 'font-weight': 'bold', fill: '#333333'},
            link).textContent = label_of(node);
        svg('text', {x: place.x + width / 2, y: place.y + 29, 'text-anchor': 'middle',
                     'font-size': 10, fill: '#666666'}, link).textContent = detail_of(node);
    });
    return root;
}

// --------------------------------------------------------------------- a queue of dead letters

// The redrive that was begun here, and has not ended yet.
let view = {vhost: null, queue: null, busy: false, begun: null};

function render_queue(vhost, queue) {
    if (view.vhost !== vhost || view.queue !== queue) {
        view = {vhost: vhost, queue: queue, busy: false, begun: null};
    }
    render({}, 'dead-letters', '#/dead-lettering');
}

function queue_page() {
    const HTML = pages().HTML;
    setTimeout(function () {
        if ($('#main #dead-letters-groups').is(':empty')) {
            load_groups();
            watch_queue();
        }
    }, 0);
    return HTML`
<h1 class="delayed-page">Dead letters in queue <a href="#/queues/${esc(view.vhost)}/${esc(view.queue)}">${
    highlight_extra_whitespace(view.queue)}</a>${pages().safe(fmt_maybe_vhost(view.vhost))}</h1>
<div class="section">
  <h2>By where and why they died</h2>
  <div class="hider"><div id="dead-letters-groups"></div></div>
</div>
${window.DeadLetterMessages.section()}
<div class="section">
  <h2>The history of one</h2>
  <div class="hider">
    <table class="form delayed-form">
      <tr>
        <th><label>Position, 1 is the head:</label></th>
        <td><input type="text" id="dead-letters-position" value="1" size="8"/></td>
        <td><button data-dead-letters="explain">Explain</button></td>
      </tr>
    </table>
    <div id="dead-letters-history"></div>
  </div>
</div>
<div class="section">
  <h2>Redrive</h2>
  <div class="hider">
    <table class="form delayed-form" id="dead-letters-redrive">
      <tr>
        <th><label>To:</label></th>
        <td>
          ${target_fields('dead-letters')}
        </td>
      </tr>
      <tr>
        <th><label>Only those that died for:</label></th>
        <td><select id="dead-letters-reason">
          <option value="">any reason</option>
          <option>rejected</option><option>expired</option><option>maxlen</option>
          <option>delivery_limit</option>
        </select></td>
      </tr>
      <tr>
        <th><label>in queue:</label></th>
        <td><input type="text" id="dead-letters-origin" placeholder="any"/></td>
      </tr>
      <tr>
        <th><label>with header:</label></th>
        <td><input type="text" id="dead-letters-header" placeholder="name=value"/></td>
      </tr>
      <tr>
        <th><label>longer ago than:</label></th>
        <td><input type="text" id="dead-letters-older_than" placeholder="90s, 10m, 2h, 3d" size="12"/></td>
      </tr>
      <tr>
        <th><label>no longer ago than:</label></th>
        <td><input type="text" id="dead-letters-newer_than" placeholder="90s, 10m, 2h, 3d" size="12"/></td>
      </tr>
      <tr>
        <th><label>At most:</label></th>
        <td><input type="text" id="dead-letters-limit" placeholder="all" size="8"/> messages,
        <input type="text" id="dead-letters-rate" placeholder="any number" size="8"/> a second</td>
      </tr>
      <tr>
        <th><label>History:</label></th>
        <td><label><input type="checkbox" id="dead-letters-keep"/> keep x-death</label></td>
      </tr>
      <tr>
        <td></td>
        <td><button data-dead-letters="redrive">Redrive</button>
        <span id="dead-letters-progress"></span></td>
      </tr>
    </table>
    <div id="dead-letters-redrives"></div>
  </div>
</div>`;
}

// Where messages go to, and what the API calls that: null if it is not all there.
function target_fields(id) {
    return pages().HTML`
<select id="${id}-to">
  <option value="origin">the queue in which each died last</option>
  <option value="original_exchange">the exchange that each was published to</option>
  <option value="queue">the queue ...</option>
  <option value="exchange">the exchange ...</option>
</select>
<input type="text" id="${id}-target" placeholder="queue or exchange"/>
<input type="text" id="${id}-key" placeholder="routing key"/>`;
}

function target_of(id) {
    const value = function (name) { return $.trim($('#main #' + id + '-' + name).val()); };
    const body = {}, to = value('to'), target = value('target');
    if ((to == 'queue' || to == 'exchange') && target == '') {
        show_popup('warn', 'To which ' + to + '?');
        return null;
    }
    if (to == 'queue') body.to_queue = target;
    if (to == 'exchange') {
        body.to_exchange = target;
        if (value('key') !== '') body.routing_key = value('key');
    }
    if (to == 'original_exchange') body.to_original_exchange = true;
    return body;
}

// One after the other, as what is looked at in a classic queue is not to be seen by others meanwhile.
function load_groups(again) {
    const HTML = pages().HTML, at = view;
    show('dead-letters-groups', HTML`<p>Looking ...</p>`);
    const then = function () { window.DeadLetterMessages.load(at.vhost, at.queue, again); };
    pages().request('GET', api_path(at.vhost, at.queue), null, function (answer) {
        if (at !== view) return;
        show('dead-letters-groups', groups(answer.groups, answer.max));
        then();
    }, function (why) {
        if (at !== view) return;
        show('dead-letters-groups', HTML`<p class="warning">${why}</p>`);
        show('dead-letters-messages', HTML`<p class="warning">${why}</p>`);
    });
}

function groups(rows, max) {
    const HTML = pages().HTML;
    const looked = rows.reduce(function (sum, row) { return sum + row.messages; }, 0);
    if (rows.length == 0) return HTML`<p>... no messages ...</p>`;
    return HTML`
<div class="delayed-wide"><table class="list" id="dead-letters-table">
  <thead>
    <tr>
      <th>Died first in</th><th>Last for</th><th>Published to</th><th>Routing key</th>
      <th>Messages</th><th>Oldest</th><th>Newest</th>
    </tr>
  </thead>
  <tbody>${rows.map(function (row, i) {
      const ago = function (s) {
          return row.reason === '' ? '' : pages().duration(1000 * s) + ' ago';
      };
      return HTML`
    <tr${pages().safe(alt_rows(i))}>
      <td>${row.first_queue}</td>
      <td>${row.reason || 'not a dead letter'}</td>
      <td>${row.exchange === '' ? '(AMQP default)' : row.exchange}</td>
      <td>${row.routing_key}</td>
      <td class="r">${fmt_num_thousands(row.messages)}</td>
      <td class="r">${ago(row.oldest_s)}</td>
      <td class="r">${ago(row.newest_s)}</td>
    </tr>`;
  })}
  </tbody>
</table></div>
${looked >= max && HTML`<p>Only the first ${fmt_num_thousands(max)} messages were looked at.</p>`}`;
}

function explain() {
    const HTML = pages().HTML, at = view;
    const position = $.trim($('#main #dead-letters-position').val());
    pages().request('GET', api_path(at.vhost, at.queue) + '/' + esc(position), null,
                    function (answer) {
        if (at === view) {
            show('dead-letters-history', HTML`<ol>${answer.sentences.map(function (sentence) {
                return HTML`<li>${sentence}</li>`;
            })}</ol>`);
        }
    });
}

// The API's words for what is to be moved, or null if they are not all there.
function redrive_request() {
    const value = function (id) { return $.trim($('#main #dead-letters-' + id).val()); };
    const body = target_of('dead-letters');
    if (body === null) return null;
    ['reason', 'origin', 'header', 'older_than', 'newer_than'].forEach(function (name) {
        if (value(name) !== '') body[name] = value(name);
    });
    if ($('#main #dead-letters-keep').is(':checked')) body.keep_x_death = true;
    for (const name of ['limit', 'rate']) {
        if (value(name) === '') continue;
        if (!/^[1-9][0-9]{0,8}$/.test(value(name))) {
            show_popup('warn', 'How many messages' + (name == 'rate' ? ' a second' : ' at most') + '? '
                       + fmt_escape_html(value(name)) + ' is not a number.');
            return null;
        }
        body[name] = Number(value(name));
    }
    return body;
}

const LEFT = {no_target: 'left: no history that names a target', would_loop: 'left: would come back at once',
              unroutable: 'left: the target is not there', refused: 'left: refused by the target, '
              + 'or you may not publish there', unconfirmed: 'published and not confirmed'};

function summary(sums) {
    return fmt_num_thousands(sums.redriven) + ' of ' + fmt_num_thousands(sums.examined)
        + ' messages redriven.' + left_text(sums);
}

function left_text(sums) {
    const left = Object.keys(LEFT).filter(function (key) { return sums[key] > 0; });
    return left.map(function (key) {
        return ' ' + fmt_num_thousands(sums[key]) + ' ' + LEFT[key] + '.';
    }).join('') + (sums.stopped ? ' It ended early: ' + sums.stopped + '.' : '');
}

window.DeadLetterPages = {target_fields: target_fields, target_of: target_of, left_text: left_text,
                          reload: function () { load_groups(true); }};

// First only counts, then asks; then the broker moves them by itself.
function redrive() {
    const at = view, body = redrive_request();
    if (body === null || at.busy) return;
    const progress = function (text) {
        if (at === view) $('#main #dead-letters-progress').text(text);
    };
    const over = function () {
        at.busy = false;
        progress('');
    };
    at.busy = true;
    progress('Counting ...');
    pages().request('POST', api_path(at.vhost, at.queue) + '/redrive', Object.assign({}, body, {
        dry_run: true, limit: Math.min(body.limit || MOST_COUNTED, MOST_COUNTED)}), function (would) {
        if (at !== view) return over();
        if (would.redriven == 0) {
            over();
            return show_popup('info', fmt_escape_html(summary(would).replace('redriven',
                                                                             'can be redriven')));
        }
        const targets = Object.keys(would.targets).slice(0, 5).map(function (target) {
            return would.targets[target] + ' to ' + target;
        }).join(', ');
        if (!confirm(fmt_num_thousands(would.redriven) + (would.stopped ? ' or more' : '')
                     + ' messages will be redriven: ' + targets + '. Are you sure?')) {
            return over();
        }
        pages().request('POST', api_path(at.vhost, at.queue) + '/redrives', body, function (job) {
            over();
            at.begun = job.id;
            if (at === view) watch_queue();
        }, over);
    }, over);
}

// ------------------------------------------------------- redrives that go on in the broker

const MOST_COUNTED = 100000, POLL_MS = 1000, SHOWN_REDRIVES = 10;

let timer = null, watched = null;

function is_under_way(job) {
    return job.state == 'running' || job.state == 'stopping';
}

// Shows them as long as the place for them is on the page, anew while one is under way.
function watch(place, path, then) {
    const current = function () { return watched === path && $('#main #' + place).length > 0; };
    clearTimeout(timer);
    watched = path;
    pages().request('GET', path, null, function (answer) {
        if (!current()) return;
        const jobs = answer.redrives.filter(is_under_way).concat(answer.redrives.filter(function (job) {
            return !is_under_way(job);
        })).slice(0, SHOWN_REDRIVES);
        show_redrives(place, jobs);
        clearTimeout(timer);
        if (jobs.some(is_under_way)) timer = setTimeout(watch, POLL_MS, place, path, then);
        then(answer.redrives);
    }, function (why) {
        if (!current()) return;
        $('#main #' + place).removeData('shown');
        show(place, pages().HTML`<p class="warning">The redrives are not known: ${why}</p>`);
        clearTimeout(timer);
        timer = setTimeout(watch, 5 * POLL_MS, place, path, then);
    }, true);
}

// A row is made anew only if it says something else, as a button must be there while it is pressed.
function show_redrives(place, jobs) {
    const at = $('#main #' + place);
    const states = jobs.map(function (job) { return job.id + job.state; }).join();
    if (at.data('shown') !== states) {
        at.data('shown', states).html(redrives_table(jobs).html);
    } else {
        jobs.forEach(function (job, i) {
            at.find('.dead-letters-far').eq(i).html(how_far(job).html);
        });
    }
}

function redrives_table(jobs) {
    const HTML = pages().HTML;
    if (jobs.length == 0) return HTML``;
    return HTML`
<h3>Redrives in the broker</h3>
<div class="delayed-wide"><table class="list dead-letters-jobs">
  <thead><tr><th>Queue</th><th>Begun</th><th>State</th><th>Messages</th><th></th></tr></thead>
  <tbody>${jobs.map(function (job, i) {
      return HTML`
    <tr${pages().safe(alt_rows(i))}>
      <td><a href="${page_url(job.vhost, job.queue)}">${job.queue}</a></td>
      <td>${fmt_timestamp(job.started)}<sub>by ${job.user}</sub></td>
      <td>${pages().safe(fmt_state(is_under_way(job) ? 'green' : job.state == 'failed' ? 'red' : 'grey',
                                   job.state, ''))}</td>
      <td class="dead-letters-far">${how_far(job)}</td>
      <td>${job.state == 'running' && HTML`<button data-dead-letters="stop" data-redrive="${job.id}"
          data-vhost="${job.vhost}" data-queue="${job.queue}">Stop</button>`}</td>
    </tr>`;
  })}
  </tbody>
</table></div>`;
}

function how_far(job) {
    const HTML = pages().HTML, sums = job.progress;
    if (job.state == 'failed') return HTML`${job.reason}`;
    if (sums === null) return HTML`Looking for their targets ...`;
    if (!is_under_way(job)) return HTML`${summary(sums)}`;
    const passed = Date.now() - job.started, left = sums.total - sums.examined;
    return HTML`<progress max="${sums.total}" value="${sums.examined}"></progress>
${fmt_num_thousands(sums.redriven)} redriven, ${fmt_num_thousands(sums.examined)} of ${
    fmt_num_thousands(sums.total)} looked at${sums.examined > 0 && left > 0 && passed > 0
    && ', some ' + pages().duration(passed / sums.examined * left) + ' left'}`;
}

function watch_queue() {
    const at = view;
    watch('dead-letters-redrives', api_path(at.vhost, at.queue) + '/redrives', function (jobs) {
        if (at !== view || at.begun === null) return;
        const job = jobs.find(function (one) { return one.id === at.begun; });
        if (job !== undefined && is_under_way(job)) return;
        at.begun = null;
        load_groups();
        if (job === undefined) {
            show_popup('warn', 'The broker was restarted, and the redrive ended with it. What was not moved '
                       + 'is in the queue still.');
        } else {
            show_popup(job.state == 'failed' ? 'warn' : 'info', fmt_escape_html(
                job.state == 'failed' ? job.reason : summary(job.progress)));
        }
    });
}

function stop_redrive(button) {
    const path = api_path(button.attr('data-vhost'), button.attr('data-queue'));
    pages().request('POST', path + '/redrives/' + esc(button.attr('data-redrive')) + '/stop', {}, function () {
        if ($('#main #dead-letters-redrives').length > 0) watch_queue();
        else watch_all();
    });
}

function watch_all() {
    watch('dead-lettering-redrives', '/dead-letter-redrives', function () {});
}

const ACTIONS = {
    check: check,
    look: function () {
        const queue = $('#main #dead-letters-queue').val();
        if (queue === '') {
            show_popup('warn', 'Which queue?');
        } else {
            go_to(page_url($('#main #dead-letters-vhost').val(), queue));
        }
    },
    all_of_rule: function (button) {
        const group = button.closest('tbody');
        group.find('.dead-lettering-more').show();
        button.closest('tr').remove();
    },
    explain: explain,
    redrive: redrive,
    stop: stop_redrive
};

$(document).on('click', '#main [data-dead-letters]', function () {
    ACTIONS[$(this).attr('data-dead-letters')]($(this));
    return false;
});

// RabbitMQ 4.3 makes a page anew for another virtual host only if it asks for something itself.
$(document).on('change', '#show-vhost', function () {
    if ($('#main #dead-lettering-findings').length == 0) return;
    $('#dead-letters-vhost').val(chosen_vhost() || '/');
    check();
});

NAVIGATION['Admin'][0]['Dead Letters'] = ['#/dead-lettering', 'policymaker'];

dispatcher_add(function (sammy) {
    const title = function (context, name) {
        if (context.title) context.title(name);
    };
    pages().template('dead-lettering', dead_lettering_page);
    pages().template('dead-letters', queue_page);
    sammy.get('#/dead-lettering', function () {
        title(this, 'Dead letters');
        render_dead_lettering();
    });
    sammy.get('#/dead-letters/:vhost/:queue', function () {
        title(this, 'Dead letters in ' + this.params['queue']);
        render_queue(this.params['vhost'], this.params['queue']);
    });
});
})();
