"""Settings of Django and, with the prefix KUYRUK_, of kuyruk: as usual in a Django project."""

import os

SECRET_KEY = "only for this example"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "examples.django_shop.urls"
INSTALLED_APPS = ["examples.django_shop"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
TIME_ZONE = "UTC"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP", "shop.sqlite3"),
    }
}

KUYRUK_WORKER_THREADS = 2
KUYRUK_RABBIT_URL = os.environ.get("KUYRUK_RABBIT_URL")
