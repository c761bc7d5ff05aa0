// SPDX-License-Identifier: MPL-2.0

// The messages of a queue of dead letters, page by page: to look at, to redrive, to drop, and to send an
// edited copy of. What is chosen is named by the ids that /api/dead-letters/.../messages gives, which mean the
// same message wherever it is by then. A part of the page that dead_letters.js makes.

(function () {
'use strict';

const COUNT = 20;
// Of each body; and of one that is asked for.
const BODY_BYTES = 2000, MOST_BODY_BYTES = 262144;

// From where each page until this one began; the page; the message that is shown, whole or not.
let view = null;

function pages() {
    return window.DelayedPages;
}

function dead_letters() {
    return window.DeadLetterPages;
}

function show(id, html) {
    $('#main #' + id).html(html.html);
}

function api_path() {
    return '/dead-letters/' + esc(view.vhost) + '/' + esc(view.queue) + '/messages';
}

function text(value) {
    return value instanceof Object && 'base64' in value ? value.base64 : value;
}

function shortened(value, length) {
    return value.length <= length ? value : value.substring(0, length) + '...';
}

function headers_text(headers) {
    return Object.keys(headers).filter(function (name) {
        return name !== 'x-death' && !/^x-(first|last)-death-/.test(name);
    }).map(function (name) {
        const value = headers[name];
        return name + ': ' + (typeof value == 'string' ? value : JSON.stringify(value));
    }).join(', ');
}

function messages_text(n) {
    return fmt_num_thousands(n) + (n == 1 ? ' message' : ' messages');
}

// ------------------------------------------------------------------------------ the list

function section() {
    return pages().HTML`
<div class="section">
  <h2>Messages</h2>
  <div class="hider">
    <div id="dead-letters-messages"></div>
    <div id="dead-letters-message"></div>
  </div>
</div>`;
}

// Anew from the head, or again from where it is.
function load(vhost, queue, again) {
    if (!again || view === null || view.vhost !== vhost || view.queue !== queue) {
        view = {vhost: vhost, queue: queue, starts: [1], page: null, shown: null, busy: false};
    }
    load_page();
}

function load_page() {
    const at = view, from = at.starts[at.starts.length - 1];
    show('dead-letters-messages', pages().HTML`<p>Looking ...</p>`);
    show('dead-letters-message', pages().HTML``);
    at.shown = null;
    pages().request('GET', api_path() + '?from=' + from + '&count=' + COUNT + '&body_bytes=' + BODY_BYTES, null,
                    function (page) {
        if (at !== view) return;
        // Those on the pages before have gone meanwhile.
        if (page.messages.length == 0 && at.starts.length > 1) {
            at.starts.pop();
            return load_page();
        }
        at.page = page;
        show('dead-letters-messages', list(page));
    }, function (why) {
        if (at === view) show('dead-letters-messages', pages().HTML`<p class="warning">${why}</p>`);
    }, true);
}

function list(page) {
    const HTML = pages().HTML, safe = pages().safe;
    if (page.messages.length == 0) return HTML`<p>... no messages ...</p>`;
    const first = safe(view.starts.length > 1 ? '' : ' disabled="disabled"');
    return HTML`
<div class="delayed-wide"><table class="list" id="dead-letters-list">
  <thead>
    <tr>
      <th class="c"><input type="checkbox" id="dead-letters-all" title="All on this page"/></th>
      <th></th><th>Died last</th><th>Routing key</th><th>Headers</th><th>Body</th><th>Size</th><th></th>
    </tr>
  </thead>
  <tbody>${page.messages.map(function (message, i) {
      return HTML`
    <tr${safe(alt_rows(i))}>
      <td class="c"><input type="checkbox" class="dead-letters-one" value="${message.id}"/></td>
      <td class="r">${message.position}</td>
      <td>${message.death !== null && HTML`${message.death.reason} in ${
          shortened(message.death.queue, 40)}<sub>${ago(message.death.time)}</sub>`}</td>
      <td>${shortened(text(message.routing_key), 40)}</td>
      <td>${shortened(headers_text(message.headers), 80)}</td>
      <td>${message.payload_encoding == 'string' ? shortened(message.payload, 80) : 'not text'}</td>
      <td class="r">${fmt_bytes(message.payload_bytes)}</td>
      <td><button data-dead-letter="look" data-at="${i}">Show</button></td>
    </tr>`;
  })}
  </tbody>
</table></div>
<table class="form delayed-form"><tr>
  <td><button data-dead-letter="first"${first}>First page</button></td>
  <td><button data-dead-letter="previous"${first}>Previous</button></td>
  <td><button data-dead-letter="next"${safe(page.next === null ? ' disabled="disabled"' : '')}>Next</button></td>
  <td>${page.truncated && 'Looking took too long, and ended here.'}${
      page.next === null && page.messages[page.messages.length - 1].position >= page.max
      && HTML`One can look at the first ${fmt_num_thousands(page.max)}.`}</td>
</tr></table>
<table class="form delayed-form">
  <tr><th><label>Selected ones to:</label></th><td>${dead_letters().target_fields('dead-letters-chosen')}</td></tr>
  <tr><th></th><td><label><input type="checkbox" id="dead-letters-chosen-keep"/> keep x-death</label></td></tr>
  <tr><th></th><td>
    <button data-dead-letter="redrive">Redrive selected</button>
    <button data-dead-letter="drop">Drop selected</button>
    <span id="dead-letters-chosen-busy"></span>
  </td></tr>
</table>`;
}

function ago(seconds) {
    return seconds === null ? '' : pages().duration(Math.max(0, Date.now() - 1000 * seconds)) + ' ago';
}

// -------------------------------------------------------------------------- one of them

function look(button) {
    show_message(view.page.messages[Number(button.attr('data-at'))]);
}

function show_message(message) {
    const HTML = pages().HTML, safe = pages().safe;
    view.shown = message;
    show('dead-letters-message', HTML`
<h3>Message ${message.position}</h3>
<table class="facts">
  <tr><th>Published to</th><td>${text(message.exchange) === '' ? '(AMQP default)' : text(message.exchange)}</td></tr>
  <tr><th>Routing key</th><td>${text(message.routing_key)}</td></tr>
  <tr><th>Properties</th><td>${safe(fmt_table_short(message.properties))}</td></tr>
  <tr><th>Headers</th><td>${safe(fmt_table_short(message.headers))}</td></tr>
  <tr><th>History</th><td><ol>${message.history.map(function (sentence) {
      return HTML`<li>${sentence}</li>`;
  })}</ol></td></tr>
  <tr>
    <th>Payload<sub>${fmt_num_thousands(message.payload_bytes)} bytes</sub>
      <sub>Encoding: ${message.payload_encoding}</sub></th>
    <td><pre class="msg-payload">${message.payload_encoding == 'base64'
        ? message.payload.replace(/.{120}/g, '$&\n') : message.payload}</pre>
      ${message.truncated && message.payload.length < MOST_BODY_BYTES && HTML`<p>There is more of it.
      <button data-dead-letter="whole">Show up to 256 kB</button></p>`}</td>
  </tr>
</table>
<p style="clear: both"><button data-dead-letter="edit">Edit a copy</button></p>
<div id="dead-letters-edit"></div>`);
}

// The body of the one that is shown, if it is still where it was.
function whole(then) {
    const at = view, message = at.shown;
    pages().request('GET', api_path() + '?from=' + message.position + '&count=1&body_bytes=' + MOST_BODY_BYTES, null,
                    function (page) {
        if (at !== view || at.shown !== message) return;
        const found = page.messages[0];
        if (found === undefined || found.id !== message.id) {
            show_popup('warn', 'The queue has moved meanwhile: look at the page anew.');
        } else {
            show_message(found);
            then();
        }
    });
}

// ------------------------------------------------------------------------ an edited copy

function edit() {
    if (view.shown.truncated && view.shown.payload_bytes <= MOST_BODY_BYTES) return whole(edit);
    const HTML = pages().HTML, message = view.shown;
    show('dead-letters-edit', HTML`
<h3>A copy of message ${message.position}</h3>
<table class="form delayed-form">
  <tr><th><label>To:</label></th><td>${dead_letters().target_fields('dead-letters-copy')}</td></tr>
  <tr><th><label>Properties:</label></th>
    <td><textarea id="dead-letters-copy-properties" rows="6" cols="60">${
        JSON.stringify(message.properties, null, 2)}</textarea></td></tr>
  <tr><th><label>Headers:</label></th>
    <td><textarea id="dead-letters-copy-headers" rows="10" cols="60">${
        JSON.stringify(message.headers, null, 2)}</textarea></td></tr>
  <tr><th><label>Body:</label>${message.payload_encoding == 'base64' && HTML`<sub>in base64</sub>`}</th>
    <td>${message.truncated ? 'It is too long to be edited here, and is sent as it is.'
        : HTML`<textarea id="dead-letters-copy-body" rows="10" cols="60">
${message.payload}</textarea>`}</td></tr>
  <tr><th></th><td>
    <label><input type="checkbox" id="dead-letters-copy-keep-x-death"/> keep x-death</label><br/>
    <label><input type="checkbox" id="dead-letters-copy-keep"/> leave the message itself in the queue, too</label>
  </td></tr>
  <tr><th></th><td><button data-dead-letter="send">Send</button></td></tr>
</table>`);
    const form = $('#main #dead-letters-edit');
    form.find('textarea').css({maxWidth: '100%', boxSizing: 'border-box', fontFamily: 'monospace'});
}

// What of an object is another now, and null for what is not there any more; or null if it is none.
function changed(id, before) {
    let now = null;
    try {
        now = JSON.parse($('#main #' + id).val());
    } catch (error) {
        // Said below.
    }
    if (!(now instanceof Object) || Array.isArray(now)) return null;
    const edits = {};
    Object.keys(before).forEach(function (name) { if (!(name in now)) edits[name] = null; });
    Object.keys(now).forEach(function (name) {
        if (JSON.stringify(now[name]) !== JSON.stringify(before[name])) edits[name] = now[name];
    });
    return edits;
}

function send() {
    const message = view.shown, body = dead_letters().target_of('dead-letters-copy');
    if (body === null) return;
    body.id = message.id;
    for (const part of ['properties', 'headers']) {
        const edits = changed('dead-letters-copy-' + part, message[part]);
        if (edits === null) return show_popup('warn', 'The ' + part + ' are not a JSON object.');
        if (Object.keys(edits).length > 0) body[part] = edits;
    }
    // A textarea has line feeds only.
    const payload = $('#main #dead-letters-copy-body').val();
    if (payload !== undefined && payload !== message.payload.replace(/\r\n?/g, '\n')) {
        body.payload = payload;
        body.payload_encoding = message.payload_encoding;
    }
    if ($('#main #dead-letters-copy-keep').is(':checked')) body.keep = true;
    if ($('#main #dead-letters-copy-keep-x-death').is(':checked')) body.keep_x_death = true;
    change('send', body, 'A copy of message ' + message.position + ' will be sent, '
           + (body.keep ? 'and the message stays.' : 'and takes its place.'));
}

// -------------------------------------------------------------------------- changes

function chosen() {
    const ids = $('#main .dead-letters-one:checked').map(function () { return $(this).val(); }).get();
    if (ids.length == 0) show_popup('warn', 'Which messages?');
    return ids;
}

function redrive() {
    const ids = chosen(), body = dead_letters().target_of('dead-letters-chosen');
    if (ids.length == 0 || body === null) return;
    if ($('#main #dead-letters-chosen-keep').is(':checked')) body.keep_x_death = true;
    change('redrive', Object.assign(body, {ids: ids}), messages_text(ids.length) + ' will be redriven.');
}

function drop() {
    const ids = chosen();
    if (ids.length == 0) return;
    change('drop', {ids: ids}, messages_text(ids.length)
           + ' will be dropped. They are gone then: nobody will get them.');
}

function change(what, body, asked) {
    const at = view;
    if (at.busy || !confirm(asked + ' Are you sure?')) return;
    const over = function () {
        at.busy = false;
        if (at === view) $('#main #dead-letters-chosen-busy').text('');
    };
    at.busy = true;
    $('#main #dead-letters-chosen-busy').text('Working ...');
    pages().request('POST', api_path() + '/' + what, body, function (sums) {
        over();
        show_popup('info', fmt_escape_html(
            (what == 'drop' ? messages_text(sums.dropped) + ' dropped.'
             : messages_text(sums.redriven) + (what == 'send' ? ' sent.' : ' redriven.'))
            + (sums.not_found > 0 ? ' ' + messages_text(sums.not_found)
               + ' not in the queue any more, or out with a consumer.' : '')
            + dead_letters().left_text(sums)));
        if (at === view) dead_letters().reload();
    }, over);
}

const ACTIONS = {
    first: function () {
        view.starts = [1];
        load_page();
    },
    previous: function () {
        view.starts.pop();
        load_page();
    },
    next: function () {
        view.starts.push(view.page.next);
        load_page();
    },
    look: look, edit: edit, send: send, redrive: redrive, drop: drop,
    whole: function () { whole(function () {}); }
};

$(document).on('click', '#main [data-dead-letter]', function () {
    ACTIONS[$(this).attr('data-dead-letter')]($(this));
    return false;
});

$(document).on('click', '#main #dead-letters-all', function () {
    $('#main .dead-letters-one').prop('checked', $(this).is(':checked'));
});

window.DeadLetterMessages = {section: section, load: load};

// The management pages of before 4.3 begin when each extension's script has said what it dispatches.
dispatcher_add(function () {});
})();
