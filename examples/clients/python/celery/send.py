# SPDX-License-Identifier: MPL-2.0
# python3 send.py, while `celery -A tasks worker` runs

from datetime import datetime, timedelta, timezone

import amqp
from tasks import app, charge, remind

remind.apply_async(["a countdown"], countdown=1)
remind.apply_async(["an eta"], eta=datetime.now(timezone.utc) + timedelta(seconds=1.5))
charge.delay("order 17")

order = remind.apply_async(["a cancelled task"], countdown=3600)
app.cancel(order.id)
print("cancelled")

try:
    remind.apply_async(["a century and a day"], countdown=36526 * 86400)
except amqp.PreconditionFailed as refused:
    print(f"refused: {refused.reply_text}")
