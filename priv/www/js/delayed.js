// SPDX-License-Identifier: MPL-2.0

// Delayed exchanges and their messages in the management pages. Everything is shown with the pages'
// own functions, styles and charts, and comes from /api/delayed-exchanges.
//
// Longer than other files are, as the management pages load one script for an extension.
//
// Templates are functions that answer HTML: RabbitMQ 4.3 takes no others, its pages may not
// evaluate text. What they put into HTML`...` is escaped, unless it is HTML`...` itself or said to
// be Safe.
//
// Another page of the plugin is another file, named by another module with the behaviour
// rabbit_mgmt_extension: a module names one, and the pages of RabbitMQ 3.10 begin when as many
// files have called dispatcher_add. It may use DelayedPages once its routes are asked for.

(function () {
'use strict';

// ------------------------------------------------------------------------------- HTML

function Safe(html) {
    this.html = html;
}

const ENTITIES = {'&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;'};

function escaped(value) {
    if (value instanceof Safe) return value.html;
    if (value instanceof Array) return value.map(escaped).join('');
    if (value === undefined || value === null || value === false) return '';
    return String(value).replace(/[&<>"']/g, function (c) { return ENTITIES[c]; });
}

function HTML(parts) {
    let html = parts[0];
    for (let i = 1; i < parts.length; i++) html += escaped(arguments[i]) + parts[i];
    return new Safe(html);
}

// What a function of the management pages answers is HTML.
function safe(html) {
    return new Safe(html === undefined ? '' : String(html));
}

function template(name, show) {
    const rendered = function (data) { return show(data).html; };
    if (typeof COMPILED_TEMPLATES === 'object') {
        COMPILED_TEMPLATES[name] = rendered;
    } else {
        new EJS({name: 'js/tmpl/' + name + '.ejs', precompiled: rendered});
        ejs_cached[name] = true;
    }
}

// What may be wider than a narrow screen is scrolled by itself.
function wide(html) {
    return HTML`<div class="delayed-wide">${html}</div>`;
}

// The broker's own pages are for wide screens: on narrow ones their header is higher than the room left for
// it, and lies over what is below. On ours, which begin with a heading of this class, it does not.
const STYLE = `
.delayed-wide { overflow-x: auto; }
#main:has(> .delayed-page) input, #main:has(> .delayed-page) select,
#main:has(> .delayed-page) progress { max-width: 100%; box-sizing: border-box; }
#main:has(> .delayed-page) h1, #main:has(> .delayed-page) p { overflow-wrap: anywhere; }
@media (max-width: 800px) {
    #outer:has(#main > .delayed-page) #header { position: static; width: auto; }
    #main:has(> .delayed-page), #outer:has(#main > .delayed-page) #rhs { padding-top: 1em; }
    #outer:has(#main > .delayed-page) #rhs { float: none; width: auto; }
    #main.with-rhs:has(> .delayed-page) { margin-right: 0; }
    #main:has(> .delayed-page) .delayed-form, #main:has(> .delayed-page) .delayed-form > tbody,
    #main:has(> .delayed-page) .delayed-form > tbody > tr, #main:has(> .delayed-page) .delayed-form > tbody > tr > *,
    #main:has(> .delayed-page) table.facts { display: block; width: auto; float: none; }
    #main:has(> .delayed-page) .delayed-form > tbody > tr > th { text-align: left; padding: 4px 0 0; }
    #main:has(> .delayed-page) .delayed-form > tbody > tr > td { padding: 2px 0; }
    #main:has(> .delayed-page) table.facts { overflow-x: auto; }
    #main:has(> .delayed-page) .chart { float: none; margin-right: 0; }
}`;

document.head.append(Object.assign(document.createElement('style'), {textContent: STYLE}));

function help(id) {
    return HTML`<span class="help" id="delayed-${id}"></span>`;
}

// ------------------------------------------------------------------------------ values

function text(value) {
    return value instanceof Object && 'base64' in value ? value.base64 : value;
}

function shown_text(value) {
    return value instanceof Object && 'base64' in value
        ? HTML`<abbr class="normal" title="Not UTF-8: its base64">${value.base64}</abbr>`
        : HTML`${value}`;
}

function shortened(value, length) {
    return value.length <= length ? HTML`${value}`
        : HTML`<abbr class="normal" title="${value}">${value.substring(0, length)}...</abbr>`;
}

const SECOND = 1000, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE, DAY = 24 * HOUR;

// The two largest units: "3m 20s".
function duration(ms) {
    const whole = Math.floor;
    if (ms < SECOND) return Math.round(ms) + 'ms';
    if (ms < MINUTE) return whole(ms / SECOND) + 's';
    if (ms < HOUR) return whole(ms / MINUTE) + 'm ' + whole(ms % MINUTE / SECOND) + 's';
    if (ms < DAY) return whole(ms / HOUR) + 'h ' + whole(ms % HOUR / MINUTE) + 'm';
    return whole(ms / DAY) + 'd ' + whole(ms % DAY / HOUR) + 'h';
}

function from_now(due) {
    const ms = due - Date.now();
    return ms >= 0 ? 'in ' + duration(ms) : duration(-ms) + ' ago';
}

function shown_due(due) {
    return due === null || due === undefined ? ''
        : HTML`<abbr class="normal" title="${fmt_timestamp(due)}">${from_now(due)}</abbr>`;
}

function number(n) {
    return fmt_num_thousands(n);
}

function messages(n) {
    return number(n) + (n == 1 ? ' message' : ' messages');
}

function state(exchange) {
    return safe(exchange.unreadable > 0
        ? fmt_state('red', 'cannot be read', messages(exchange.unreadable)
            + ' cannot be read from the disk; it is tried again, and the log says why')
        : exchange.paused
        ? fmt_state('yellow', 'paused', 'What is due is held back until the exchange is resumed')
        : fmt_state('green', 'running', ''));
}

function several_vhosts() {
    return typeof vhosts_interesting === 'undefined' ? display.vhosts : vhosts_interesting;
}

// ---------------------------------------------------------------------------- requests

// A failure is shown, unless it is quiet.
function request(method, path, body, done, failed, quiet) {
    const req = xmlHttpRequest();
    req.open(method, 'api' + path, true);
    const credentials = typeof authorization_header === 'function' ? authorization_header()
                                                                   : auth_header();
    if (credentials !== null) req.setRequestHeader('authorization', credentials);
    req.setRequestHeader('content-type', 'application/json');
    req.onreadystatechange = function () {
        if (req.readyState != 4) return;
        let answer = null;
        try {
            answer = JSON.parse(req.responseText);
        } catch (e) {
            // No answer, or a proxy's.
        }
        if (req.status >= 200 && req.status < 300) {
            done(answer);
        } else {
            const why = answer && answer.reason ? String(answer.reason)
                : req.status == 0 ? 'The broker does not answer.'
                : 'The broker answered with status ' + req.status + '.';
            if (!quiet) show_popup('warn', fmt_escape_html(why));
            if (failed) failed(why);
        }
    };
    req.send(body === null ? null : JSON.stringify(body));
}

// What takes long answers with a cursor, and is asked again with it: the sums of all answers.
function request_all(path, body, progress, done, failed) {
    const sums = {examined: 0, matched: 0, changed: 0, in_flight: 0};
    (function next(cursor) {
        request('POST', path, Object.assign({cursor: cursor}, body), function (answer) {
            for (const key in sums) sums[key] += answer[key];
            if (answer.cursor === null) {
                done(sums);
            } else {
                progress(sums);
                next(answer.cursor);
            }
        }, failed);
    })(null);
}

function api_path(vhost, name) {
    return '/delayed-exchanges/' + esc(vhost) + '/' + esc(name);
}

function page_url(vhost, name) {
    return '#' + api_path(vhost, name);
}

// ------------------------------------------------------------------------------ charts

const charts = {};

// Counts by bucket as bars. They are drawn when the page is there.
function bar_chart(id, buckets, colour, label) {
    charts[id] = {colour: colour, bars: buckets.map(function (bucket) {
        return {label: label(bucket.up_to), count: bucket.messages};
    })};
    soon();
    return wide(HTML`<div id="${id}" class="delayed-chart"
        style="width: ${Math.max(400, 50 * buckets.length)}px; height: 200px;"></div>`);
}

function draw_chart(id) {
    const place = $('#main #' + id);
    const chart = charts[id];
    if (place.length == 0 || place.width() == 0) return;
    const plot = $.plot(place, [{data: chart.bars.map(function (bar, i) { return [i, bar.count]; }),
                                 color: chart.colour, shadowSize: 0}], {
        series: {lines: {show: false}, bars: {show: true, align: 'center', barWidth: 0.8,
                                              lineWidth: 0, fill: 0.9}},
        grid: $.extend({}, chart_chrome.grid, {labelMargin: 8}),
        xaxis: {tickLength: 0, min: -0.6, max: chart.bars.length - 0.4,
                ticks: chart.bars.map(function (bar, i) { return [i, bar.label]; })},
        yaxis: {tickColor: chart_chrome.yaxis.tickColor, min: 0, minTickSize: 1, tickDecimals: 0,
                max: 1.15 * Math.max(5, Math.max.apply(null, chart.bars.map(function (bar) {
                    return bar.count;
                }))),
                tickFormatter: fmt_y_axis(fmt_plain_axis)},
        legend: {show: false}});
    chart.bars.forEach(function (bar, i) {
        if (bar.count == 0) return;
        const at = plot.pointOffset({x: i, y: bar.count});
        $('<small class="delayed-bar"></small>').text(fmt_si(bar.count)).appendTo(place)
            .css({position: 'absolute', top: at.top - 16, left: at.left - 25, width: 50,
                  textAlign: 'center'});
    });
}

function fmt_si(n) {
    return n < 10000 ? number(n) : fmt_plain_axis(n, n).replace(' ', '');
}

// What of a page is made by code, after the management pages have put its HTML in place.
let scheduled = false;

function soon() {
    if (scheduled) return;
    scheduled = true;
    setTimeout(function () {
        scheduled = false;
        Object.keys(charts).forEach(draw_chart);
        if ($('#main #delayed-messages').is(':empty')) load_messages();
        if ($('#main #delayed-message').is(':empty')) load_message();
    }, 0);
}

const DUE_LABELS = {0: 'due', 60000: '1 min', 300000: '5 min', 900000: '15 min', 3600000: '1 h',
                    10800000: '3 h', 43200000: '12 h', 86400000: '1 d', 259200000: '3 d',
                    604800000: '7 d', 2592000000: '30 d', 7776000000: '90 d',
                    31536000000: '1 year'};

function due_label(up_to) {
    return up_to === null ? 'later' : DUE_LABELS[up_to] || duration(up_to);
}

function lateness_label(up_to) {
    if (up_to === null) return 'more';
    if (up_to < SECOND) return up_to + ' ms';
    if (up_to < MINUTE) return up_to / SECOND + ' s';
    return up_to < HOUR ? up_to / MINUTE + ' min' : up_to / HOUR + ' h';
}

// ---------------------------------------------------------------------- the exchanges

function render_exchanges() {
    render({'exchanges': {path: url_pagination_template('delayed-exchanges', 1, 100),
                          options: {sort: true, vhost: true, pagination: true}}},
           'delayed-exchanges', '#/delayed-exchanges');
}

function sorted(heading, column) {
    return HTML`<th>${safe(fmt_sort(heading, column))}</th>`;
}

template('delayed-exchanges', function (data) {
    return HTML`
<h1 class="delayed-page">Delayed exchanges</h1>
<div class="section">
  ${safe(paginate_ui(data.exchanges, 'delayed-exchanges', 'delayed exchanges'))}
</div>
<div class="updatable">
${data.exchanges.items.length == 0 ? HTML`<p>... no delayed exchanges ...</p>` : HTML`
<div class="delayed-wide"><table class="list" id="delayed-exchanges-table">
  <thead>
    <tr>
      <th colspan="${several_vhosts() ? 4 : 3}">Overview</th>
      <th colspan="5">Messages</th>
      <th colspan="2">Message rates</th>
    </tr>
    <tr>
      ${several_vhosts() && sorted('Virtual host', 'vhost')}
      ${sorted('Name', 'name')}
      ${sorted('Type', 'type')}
      ${sorted('State', 'paused')}
      ${sorted('Pending', 'messages_delayed')}
      ${sorted('Size', 'bytes_delayed')}
      ${sorted('Next due', 'next_due')}
      ${sorted('Overdue', 'overdue')}
      ${sorted('In flight', 'in_flight')}
      ${sorted('published', 'message_stats.published_details.rate')}
      ${sorted('released', 'message_stats.released_details.rate')}
    </tr>
  </thead>
  <tbody>${data.exchanges.items.map(function (exchange, i) {
      return HTML`
    <tr${safe(alt_rows(i))}>
      ${several_vhosts() && HTML`<td>${exchange.vhost}</td>`}
      <td><a href="${page_url(exchange.vhost, exchange.name)}">${
          highlight_extra_whitespace(exchange.name)}</a></td>
      <td class="c">${exchange.type}</td>
      <td class="c">${state(exchange)}</td>
      <td class="r">${number(exchange.messages_delayed)}</td>
      <td class="r">${fmt_bytes(exchange.bytes_delayed)}</td>
      <td class="r">${shown_due(exchange.next_due)}</td>
      <td class="r">${number(exchange.overdue)}</td>
      <td class="r">${number(exchange.in_flight)}</td>
      <td class="r">${safe(fmt_detail_rate(exchange.message_stats, 'published'))}</td>
      <td class="r">${safe(fmt_detail_rate(exchange.message_stats, 'released'))}</td>
    </tr>`;
  })}
  </tbody>
</table></div>`}
</div>
<p><a href="api/delay-wheel/index.html">HTTP API for delayed messages</a></p>`;
});

// -------------------------------------------------------------------- of one exchange

// What of the messages is being looked at; kept while the user is with this exchange.
let view = {vhost: null, name: null};

const NO_MESSAGES = {items: [], cursor: null};

function view_of(vhost, name) {
    if (view.vhost !== vhost || view.name !== name) {
        view = {vhost: vhost, name: name, path: api_path(vhost, name),
                filter: {}, limit: PAGE_SIZES[0],
                // The cursor of each page that led here; the first has none.
                cursors: [null], page: NO_MESSAGES, search: null, find: '', busy: false,
                parts: {}, asked: {}};
    }
    return view;
}

function render_exchange(vhost, name) {
    view_of(vhost, name);
    render({'exchange': view.path, 'lateness': view.path + '/lateness'}, 'delayed-exchange',
           '#/delayed-exchanges');
}

// What cannot be told while the store is not at hand: the page is there without it.
const PARTS = {
    'members': function (answer) { return members(answer.members); },
    'due-times': function (answer) { return due_times(answer.buckets); }
};

function part(name) {
    const known = view.parts[name];
    return known === undefined ? HTML`<p>Loading ...</p>`
        : known.why !== undefined ? HTML`<p class="warning">${known.why}</p>`
        : PARTS[name](known);
}

function load_parts() {
    const at = view;
    Object.keys(PARTS).forEach(function (name) {
        if (at.asked[name]) return;
        at.asked[name] = true;
        const known = function (answer) {
            at.asked[name] = false;
            at.parts[name] = answer;
            if (at === view) $('#main #delayed-' + name).html(part(name).html);
        };
        request('GET', at.path + '/' + name, null, known, function (why) { known({why: why}); }, true);
    });
}

// One line of the form each: the API's parameter, and what stands in the empty field.
const FILTERS = [
    {name: 'due_from', label: 'Due from', hint: '+90m, or 2027-01-31T12:00:00Z'},
    {name: 'due_to', label: 'Due until', hint: '+2d, or 2027-01-31T12:00:00Z'},
    {name: 'key', label: 'Key', hint: 'x-delay-key, or message_id'},
    {name: 'routing_key', label: 'Routing key', hint: ''},
    {name: 'header', label: 'Header', hint: 'name=value'},
    {name: 'published_to', label: 'Published to exchange', hint: ''}
];

const PAGE_SIZES = [20, 100, 500];

function filter_field(field) {
    return HTML`<th><label for="delayed-filter-${field.name}">${field.label}:</label></th>
        <td><input type="text" class="wide" id="delayed-filter-${field.name}" placeholder="${
        field.hint}" value="${view.filter[field.name]}" maxlength="1000"/></td>`;
}

function page_size() {
    return HTML`<th><label for="delayed-limit">Messages on a page:</label></th>
        <td><select id="delayed-limit">${PAGE_SIZES.map(function (n) {
            return HTML`<option${n == view.limit && safe(' selected="selected"')}>${n}</option>`;
        })}</select></td>`;
}

function in_twos(items) {
    return items.length == 0 ? [] : [items.slice(0, 2)].concat(in_twos(items.slice(2)));
}

// By their names in message_stats.
const OUTCOMES = {
    cancelled: 'cancelled, by their keys or by operators',
    replaced: 'replaced by another with the same key',
    deduplicated: 'not taken, as one with the same key was pending',
    unroutable: 'dropped: no queue was bound for them when they were due',
    expired: 'dropped: it was too late to release them',
    overflowed: 'dropped: the exchange was full',
    dead_lettered: 'sent to the dead-letter exchange: unroutable, too late, or the exchange was full',
    returned: 'dead letters that came back to be tried again',
    parked: 'dead letters that did not, and were parked',
    rejected: 'refused with a nack',
    unusable: 'refused alone: their delay could not be used',
    keys_ignored: 'taken without regard to their key: nobody published them to this exchange itself',
    dropped: 'lost: neither taken nor kept waiting, and their sender awaits no confirm',
    corrupt: 'lost to damage of the files of the store'};

function outcomes(stats) {
    const happened = Object.keys(OUTCOMES).filter(function (name) { return stats[name] > 0; });
    return happened.length == 0 ? HTML`<p>... nothing since the node started ...</p>` : HTML`
    <div class="delayed-wide"><table class="list">
      <thead><tr><th>Messages</th><th>since the node started</th></tr></thead>
      <tbody>${happened.map(function (name, i) {
          return HTML`
        <tr${safe(alt_rows(i))}><td class="r">${number(stats[name])}</td><td>${OUTCOMES[name]}</td></tr>`;
      })}
      </tbody>
    </table></div>`;
}

function due_times(buckets) {
    return buckets.every(function (bucket) { return bucket.messages == 0; })
        ? HTML`<p>... no messages ...</p>` : HTML`
    ${bar_chart('delayed-chart-due-times', buckets, chart_colors.full[0], due_label)}
    <p>How many are due within each time from now ${help('due-times')}</p>`;
}

// The nodes that hold the exchange's messages.
function members(all) {
    return all.length == 0 ? HTML`<p>... none, as it has delayed nothing yet ...</p>` : HTML`
    <div class="delayed-wide"><table class="list">
      <thead><tr><th>Node</th><th>State</th><th>Entries behind ${help('behind')}</th></tr></thead>
      <tbody>${all.map(function (member, i) {
          return HTML`
        <tr${safe(alt_rows(i))}><td>${member.node}</td><td class="c">${member_state(member)}</td><td class="r">${
              member.behind === null ? '' : number(member.behind)}</td></tr>`;
      })}
      </tbody>
    </table></div>`;
}

function member_state(member) {
    const colour = member.state == 'leader' || member.state == 'follower' ? 'green'
        : member.state == 'down' || member.state == 'not_started' ? 'red' : 'yellow';
    return safe(fmt_state(colour, member.state.replace('_', ' ') + (member.voter ? '' : ', no vote yet'), ''));
}

template('delayed-exchange', function (data) {
    const exchange = data.exchange;
    const late = data.lateness.buckets.reduce(function (n, bucket) { return n + bucket.messages; },
                                              0);
    soon();
    load_parts();
    return HTML`
<h1 class="delayed-page">Delayed exchange: <b>${highlight_extra_whitespace(exchange.name)}</b>${
    safe(fmt_maybe_vhost(exchange.vhost))}</h1>

<div class="section">
  <h2>Overview</h2>
  <div class="hider updatable">
    <h3>Message rates <small>last minute</small> ${help('rates')}</h3>
    ${wide(safe(rates_chart_or_text_no_heading('delayed-rates', 'delayed-rates', exchange.message_stats,
               [['Published', 'published'], ['Released', 'released']], fmt_rate, fmt_rate_axis,
               true)))}
    <h3>Details</h3>
    <table class="facts facts-l">
      <tr><th>Type</th><td>${exchange.type}</td></tr>
      <tr><th>State</th><td id="delayed-state">${state(exchange)}</td></tr>
      <tr><th>Exchange</th><td>${
          safe(link_exchange(exchange.vhost, exchange.name))}</td></tr>
    </table>
    <table class="facts facts-l">
      <tr><th>Pending</th><td id="delayed-pending">${number(exchange.messages_delayed)}</td></tr>
      <tr><th>Size as stored</th><td>${fmt_bytes(exchange.bytes_delayed)}</td></tr>
      <tr><th>In flight ${help('in-flight')}</th><td>${number(exchange.in_flight)}</td></tr>
    </table>
    <table class="facts">
      <tr><th>Next due</th><td>${shown_due(exchange.next_due)}</td></tr>
      <tr><th>Overdue ${help('overdue')}</th><td>${number(exchange.overdue)}</td></tr>
      <tr><th>Published, released</th><td>${number(exchange.message_stats.published)}, ${
          number(exchange.message_stats.released)}</td></tr>
    </table>
  </div>
</div>

<div class="section">
  <h2>Members</h2>
  <div class="hider updatable" id="delayed-members">${part('members')}</div>
</div>

<div class="section">
  <h2>Pending messages by time to due</h2>
  <div class="hider updatable" id="delayed-due-times">${part('due-times')}</div>
</div>

<div class="section">
  <h2>Release lateness</h2>
  <div class="hider updatable">
    ${late == 0 ? HTML`<p>... nothing released since the node started ...</p>` : HTML`
    ${bar_chart('delayed-chart-lateness', data.lateness.buckets, chart_colors.full[3],
                lateness_label)}
    <p>${messages(late)} since the node started, late by ${duration(data.lateness.sum / late)} on
    average ${help('lateness')}</p>`}
  </div>
</div>

<div class="section">
  <h2>What else became of messages</h2>
  <div class="hider updatable" id="delayed-outcomes">${outcomes(exchange.message_stats)}
  </div>
</div>

<div class="section">
  <h2>Messages</h2>
  <div class="hider">
    <table class="form delayed-form" id="delayed-filter">
      ${in_twos(FILTERS.map(filter_field).concat([page_size()])).map(function (pair) {
          return HTML`<tr>${pair}</tr>`;
      })}
      <tr><td></td><td><button data-delayed="filter">Show</button></td></tr>
    </table>
    <div id="delayed-messages"></div>
    <h3>Change messages ${help('change')}</h3>
    <table class="form delayed-form">
      <tr>
        <th><label for="delayed-which">Messages:</label></th>
        <td><select id="delayed-which">
          <option value="selected">selected above</option>
          <option value="matching">all that match the filter</option>
        </select></td>
      </tr>
    </table>
    ${change_buttons()}
    <p id="delayed-progress" class="clear"></p>
  </div>
</div>

<div class="section-hidden">
  <h2>Pause</h2>
  <div class="hider updatable">
    <p>${exchange.paused ? 'The exchange is paused: it takes messages in and releases none.'
            : 'A paused exchange takes messages in and releases none until it is resumed, restarts '
              + 'of the broker included. What is overdue then comes at once.'}</p>
    <button data-delayed="${exchange.paused ? 'resume' : 'pause'}">${
        exchange.paused ? 'Resume' : 'Pause'}</button>
  </div>
</div>

<div class="section-hidden">
  <h2>Purge</h2>
  <div class="hider">
    <button data-delayed="purge">Purge Messages</button>
  </div>
</div>`;
});

function change_buttons() {
    return HTML`
    <table class="form delayed-form">
      <tr>
        <td><button data-delayed="cancel">Cancel</button></td>
        <td><button data-delayed="release">Release now</button></td>
        <td><button data-delayed="reschedule">Reschedule</button></td>
        <td><select id="delayed-due-kind">
          <option value="to">to</option>
          <option value="by">by</option>
        </select>
        <input type="text" id="delayed-due" placeholder="+90m, or by 1h, -10m" maxlength="100"/>
        ${help('reschedule')}</td>
      </tr>
    </table>`;
}

// ------------------------------------------------------------------- its messages

// The API answers with less than a page, and a cursor, when it takes long to find more. A newer
// search ends this one.
function load_messages() {
    const at = view, search = at.search = {}, items = [];
    const show = function (html) { $('#main #delayed-messages').html(html.html); };
    const current = function () {
        return at === view && at.search === search && $('#main #delayed-messages').length > 0;
    };
    show(HTML`<p>Loading ...</p>`);
    (function next(cursor) {
        const query = Object.assign({limit: at.limit - items.length}, at.filter);
        if (cursor !== null) query.cursor = cursor;
        request('GET', at.path + '/messages?' + $.param(query), null, function (page) {
            if (!current()) return;
            items.push.apply(items, page.items);
            if (page.cursor !== null && items.length < at.limit) {
                show(HTML`<p>Loading: ${messages(items.length)} found so far ...</p>`);
                next(page.cursor);
            } else {
                at.page = {items: items, cursor: page.cursor};
                show_messages();
            }
        }, function (why) {
            if (!current()) return;
            at.page = NO_MESSAGES;
            show(HTML`<p class="warning">${why}</p>`);
        });
    })(at.cursors[at.cursors.length - 1]);
}

function reload(first) {
    if (first) view.cursors = [null];
    load_messages();
    partial_update();
}

function headers_text(headers) {
    return Object.keys(headers || {}).map(function (name) {
        const value = headers[name];
        return name + ': ' + (typeof value == 'string' ? value : JSON.stringify(value));
    }).join(', ');
}

function show_messages() {
    const place = $('#main #delayed-messages');
    const items = view.page.items;
    const turning = HTML`
<table class="form delayed-form"><tr>
  <td><button data-delayed="first"${safe(view.cursors.length > 1 ? '' : ' disabled="disabled"')}
      >First page</button></td>
  <td><button data-delayed="previous"${safe(view.cursors.length > 1 ? '' : ' disabled="disabled"')}
      >Previous</button></td>
  <td><button data-delayed="next"${safe(view.page.cursor ? '' : ' disabled="disabled"')}
      >Next</button></td>
  <td>Page ${view.cursors.length}: ${messages(items.length)}${
      view.page.cursor ? ', more follow' : ''}</td>
  <td><label for="delayed-find">Find on this page:</label></td>
  <td><input type="text" id="delayed-find" maxlength="1000" value="${view.find}"/>
    <span id="delayed-found"></span></td>
</tr></table>`;
    place.html((items.length == 0 && view.cursors.length == 1 && !view.page.cursor
        ? HTML`<p>... no messages ...</p>` : HTML`
<div class="delayed-wide"><table class="list" id="delayed-messages-table">
  <thead>
    <tr>
      <th class="c"><input type="checkbox" id="delayed-all" title="All on this page"/></th>
      <th>Due</th><th>Routing key</th><th>Headers</th><th>Key</th><th>Size</th><th>Id</th>
    </tr>
  </thead>
  <tbody>${items.map(function (message, i) {
      return HTML`
    <tr${safe(alt_rows(i))}>
      <td class="c"><input type="checkbox" class="delayed-one" value="${message.id}"/></td>
      ${message.damaged ? HTML`<td colspan="5">Its record is damaged: ${
          JSON.stringify(message.damaged)}</td>` : HTML`
      <td>${fmt_timestamp(message.due)}<sub>${from_now(message.due)}</sub></td>
      <td>${shortened(text(message.routing_key) || '', 60)}</td>
      <td>${shortened(headers_text(message.headers), 80)}</td>
      <td>${shortened(text(message.key) || '', 60)}</td>
      <td class="r">${fmt_bytes(message.payload_bytes)}</td>`}
      <td><a href="${page_url(view.vhost, view.name)}/messages/${message.id}">${message.id}</a></td>
    </tr>`;
  })}
  </tbody>
</table></div>
${turning}`).html);
    find_messages();
}

// Shows those of the page that say this anywhere; what is not to be seen is not selected.
function find_messages() {
    const wanted = view.find.toLowerCase();
    const rows = $('#main #delayed-messages-table tbody tr');
    const found = rows.filter(function (i) {
        const message = view.page.items[i];
        const said = [message.id, text(message.routing_key) || '', text(message.key) || '',
                      headers_text(message.headers), new Date(message.due).toISOString()];
        return said.concat($(this).text()).join('\n').toLowerCase().includes(wanted);
    });
    rows.hide().not(found).find('.delayed-one').prop('checked', false);
    found.show();
    $('#main #delayed-found').text(wanted === '' ? '' : messages(found.length) + ' of these');
}

function selected() {
    return $('#main .delayed-one:checked').map(function () { return $(this).val(); }).get();
}

function progress(of, what) {
    if (of === view) $('#main #delayed-progress').text(what);
}

// -------------------------------------------------------------------------- changes

const CHANGES = {
    cancel: {asked: ' will be cancelled. They are gone then: nobody will get them.',
             done: ' cancelled'},
    release: {asked: ' will be released now, before they are due.', done: ' made due now'},
    reschedule: {asked: ' will get another due time.', done: ' rescheduled'}
};

// The API's words for when, or null if there are none.
function wanted_due(change) {
    if (change != 'reschedule') return {};
    const when = $.trim($('#main #delayed-due').val());
    if (when == '') {
        show_popup('warn', 'Reschedule to when, or by how much?');
        return null;
    }
    return $('#main #delayed-due-kind').val() == 'by' ? {by: when} : {to: when};
}

// A purge lets go of what is in flight, too.
function done_popup(change, changed, not_changed, in_flight, purged) {
    const and_those = purged ? ', which queues may still get.' : ': left alone.';
    show_popup('info', fmt_escape_html(messages(changed) + CHANGES[change].done + '.'
        + (in_flight ? ' ' + messages(in_flight) + ' already in flight' + and_those : '')
        + (not_changed ? ' ' + messages(not_changed) + ' not there any more.' : '')));
}

function change_ids(change, ids, due, then) {
    if (!confirm(messages(ids.length) + CHANGES[change].asked + ' Are you sure?')) return;
    request('POST', view.path + '/messages/' + change, Object.assign({ids: ids}, due),
            function (answer) {
                const counts = {done: 0, in_flight: 0, not_found: 0};
                answer.results.forEach(function (result) { counts[result.outcome]++; });
                done_popup(change, counts.done, counts.not_found, counts.in_flight);
                then();
            });
}

// First only counts, then asks, then does it.
function change_matching(change, which, due) {
    const at = view;
    if (at.busy) return;
    at.busy = true;
    const body = Object.assign({}, which, due);
    const path = at.path + '/messages/' + change;
    const over = function () {
        at.busy = false;
        progress(at, '');
    };
    const examined = function (sums) {
        progress(at, messages(sums.examined) + ' examined ...');
    };
    progress(at, 'Counting ...');
    request_all(path, Object.assign({dry_run: true}, body), examined, function (counted) {
        // Whoever has gone elsewhere meanwhile is not asked.
        if (at !== view || $('#main #delayed-messages').length == 0) return over();
        if (counted.matched == 0) {
            over();
            return show_popup('info', 'No message matches.');
        }
        if (!confirm(messages(counted.matched) + CHANGES[change].asked + ' Are you sure?')) {
            return over();
        }
        request_all(path, body, examined, function (sums) {
            over();
            done_popup(change, sums.changed, 0, sums.in_flight, change == 'cancel' && which.all);
            if (at === view) reload(true);
        }, over);
    }, over);
}

function change_messages(change) {
    const due = wanted_due(change);
    if (due === null) return;
    if ($('#main #delayed-message').length > 0) {
        change_ids(change, [view.id], due, function () {
            go_to(page_url(view.vhost, view.name));
        });
    } else if ($('#main #delayed-which').val() == 'matching') {
        change_matching(change, $.isEmptyObject(view.filter) ? {all: true} : {filter: view.filter},
                        due);
    } else if (selected().length == 0) {
        show_popup('warn', 'No message is selected.');
    } else {
        change_ids(change, selected(), due, function () { reload(false); });
    }
}

function switch_exchange(what, asked) {
    if (!confirm(asked)) return;
    request('POST', view.path + '/' + what, {}, function () { partial_update(); });
}

function read_filter() {
    view.limit = $('#main #delayed-limit').val();
    view.filter = {};
    FILTERS.forEach(function (field) {
        const value = $('#main #delayed-filter-' + field.name).val();
        if (value !== '') view.filter[field.name] = value;
    });
    reload(true);
}

const ACTIONS = {
    filter: read_filter,
    first: function () { reload(true); },
    previous: function () {
        view.cursors.pop();
        load_messages();
    },
    next: function () {
        view.cursors.push(view.page.cursor);
        load_messages();
    },
    cancel: function () { change_messages('cancel'); },
    release: function () { change_messages('release'); },
    reschedule: function () { change_messages('reschedule'); },
    purge: function () { change_matching('cancel', {all: true}, {}); },
    pause: function () {
        switch_exchange('pause', 'The exchange will take messages in and release none until it is '
                        + 'resumed. Are you sure?');
    },
    resume: function () {
        switch_exchange('resume', 'What is overdue will be released at once. Are you sure?');
    },
    whole: function () { load_message(true); }
};

$(document).on('click', '#main [data-delayed]', function () {
    ACTIONS[$(this).attr('data-delayed')]();
    return false;
});

$(document).on('click', '#main #delayed-all', function () {
    $('#main .delayed-one:visible').prop('checked', $(this).is(':checked'));
});

$(document).on('input', '#main #delayed-find', function () {
    view.find = $(this).val();
    find_messages();
});

$(document).on('keypress', '#main #delayed-filter input', function (e) {
    if (e.which == 13) read_filter();
});

// --------------------------------------------------------------------- one message

const BODY_BYTES = 50000;

function render_message(vhost, name, id) {
    view_of(vhost, name).id = id;
    render({}, 'delayed-message', '#/delayed-exchanges');
}

template('delayed-message', function () {
    soon();
    return HTML`
<h1 class="delayed-page">Delayed message <b>${view.id}</b> of <a href="${page_url(view.vhost, view.name)}">${
    highlight_extra_whitespace(view.name)}</a>${safe(fmt_maybe_vhost(view.vhost))}</h1>
<div class="section">
  <h2>Message</h2>
  <div class="hider"><div id="delayed-message"></div></div>
</div>
<div class="section">
  <h2>Change</h2>
  <div class="hider">${change_buttons()}</div>
</div>`;
});

function load_message(whole) {
    const path = view.path, id = view.id;
    const current = function () { return view.path === path && view.id === id; };
    const place = function (html) {
        if (current()) $('#main #delayed-message').html(html.html);
    };
    place(HTML`<p>Loading ...</p>`);
    request('GET', path + '/messages/' + esc(id) + '?body=true'
            + (whole ? '' : '&body_bytes=' + BODY_BYTES), null,
            function (message) { place(shown_message(message)); },
            function (why) { place(HTML`<p class="warning">${why}</p>`); });
}

function shown_message(message) {
    if (message.damaged) {
        return HTML`<p class="warning">Its record is damaged: ${
            JSON.stringify(message.damaged)}</p>`;
    }
    const others = (message.routing_keys || []).slice(1);
    return HTML`
<table class="facts">
  <tr><th>Due</th><td>${fmt_timestamp(message.due)}<sub>${from_now(message.due)}</sub></td></tr>
  <tr><th>Key</th><td>${shown_text(message.key)}</td></tr>
  <tr><th>Published to</th><td>${shown_text(message.exchange)}</td></tr>
  <tr><th>Routing key</th><td>${shown_text(message.routing_key)}${others.map(function (key) {
      return HTML`<br/>${shown_text(key)}`;
  })}</td></tr>
  <tr><th>Properties</th><td>${safe(fmt_table_short(message.properties))}</td></tr>
  <tr><th>Headers</th><td>${safe(fmt_table_short(message.headers))}</td></tr>
  <tr><th>Size as stored</th><td>${fmt_bytes(message.size)}</td></tr>
  <tr>
    <th>
      Payload
      <sub>${number(message.payload_bytes)} bytes</sub>
      <sub>Encoding: ${message.payload_encoding}</sub>
    </th>
    <td>
      <pre class="msg-payload">${wrapped(message)}</pre>
      ${message.truncated && HTML`<p>There is more of it.
      <button data-delayed="whole">Show up to 16 MB</button></p>`}
    </td>
  </tr>
</table>`;
}

function wrapped(message) {
    return message.payload_encoding == 'base64' ? message.payload.replace(/.{120}/g, '$&\n')
                                                : message.payload;
}

// -------------------------------------------------------------------------- routes

HELP['delayed-rates'] = 'Messages taken in to be delayed, and messages that all their queues have '
    + 'confirmed after the delay. Sampled as often as the broker collects its statistics.';
HELP['delayed-in-flight'] = 'Released, and not yet confirmed by their queues.';
HELP['delayed-behind'] = 'Of each node that holds the exchange\'s messages, how many entries of the '
    + 'leader\'s log it does not have yet. What a majority of those with a vote has is confirmed.';
HELP['delayed-overdue'] = 'Messages that should have been released and are not in flight: the '
    + 'exchange is paused, its release rate is limited, or its queues do not take messages.';
HELP['delayed-due-times'] = 'Each message counts once: within <strong>15 min</strong> are those '
    + 'that are not due within 5 min. <strong>due</strong> are those that are in flight or '
    + 'overdue.';
HELP['delayed-lateness'] = 'From when a message was due until its last queue had confirmed it.';
HELP['delayed-change'] = 'Cancelled messages are gone. Released ones come now. Messages in flight '
    + 'to their queues are left alone; cancelling all takes them off the exchange, too, and their '
    + 'queues may still get them. Each change is counted first, and asks.';
HELP['delayed-reschedule'] = '<strong>to</strong> a time: from now (<code>+90m</code>) or absolute '
    + '(<code>2027-01-31T12:00:00Z</code>). <strong>by</strong>: so much later (<code>1h</code>) '
    + 'or earlier (<code>-10m</code>) than each is due. Units: ms, s, m, h, d, w.';

RENDER_CALLBACKS['delayed-exchanges'] = render_exchanges;

// Beside the broker's own, before Admin.
const admin = NAVIGATION['Admin'];
delete NAVIGATION['Admin'];
NAVIGATION['Delayed'] = ['#/delayed-exchanges', 'management', true];
NAVIGATION['Admin'] = admin;

// The broker's page of a delayed exchange gets a link here, under its heading. It offers no place for that.
new MutationObserver(function () {
    const at = /^#(\/exchanges\/[^/]+\/[^/?]+)$/.exec(window.location.hash);
    const heading = document.querySelector('#main > h1');
    const is_delayed = at && heading && Array.from(document.querySelectorAll('#main table.facts td'))
        .some(function (cell) { return cell.textContent.trim() == 'x-delayed-message'; });
    if (is_delayed && document.getElementById('delayed-link') === null) {
        heading.insertAdjacentHTML('afterend', HTML`
<p id="delayed-link"><a href="#/delayed-${at[1].substring(1)}">What is delayed, and what became of it</a></p>`.html);
    }
}).observe(document.body, {childList: true, subtree: true});

window.DelayedPages = {HTML: HTML, safe: safe, wide: wide, template: template, help: help, request: request,
                       request_all: request_all, bar_chart: bar_chart, duration: duration};

dispatcher_add(function (sammy) {
    const title = function (context, name) {
        if (context.title) context.title(name);
    };
    sammy.get('#/delayed-exchanges', function () {
        title(this, 'Delayed exchanges');
        render_exchanges();
    });
    sammy.get('#/delayed-exchanges/:vhost/:name', function () {
        title(this, 'Delayed exchange ' + this.params['name']);
        render_exchange(this.params['vhost'], this.params['name']);
    });
    sammy.get('#/delayed-exchanges/:vhost/:name/messages/:id', function () {
        title(this, 'Delayed message ' + this.params['id']);
        render_message(this.params['vhost'], this.params['name'], this.params['id']);
    });
});
})();
