"""The words of the bot, one table: a row per phrase, a column per language.

Names of things that stand on the bus or in the config (symbols, states, codes, releases) and the
texts of notices are not translated.
"""

import string
from collections.abc import Mapping

LANGUAGES = ("en", "de", "ru", "zh")

_TABLE: Mapping[str, tuple[str, str, str, str]] = {
    # Columns in the order of LANGUAGES.
    "score": ("Score", "Score", "Оценка", "评分"),
    "close": ("Close", "Schluss", "Закрытие", "收盘价"),
    "no_score": ("no score", "kein Score", "нет оценки", "无评分"),
    "no_signal": (
        "No signal yet.",
        "Noch kein Signal.",
        "Сигналов пока нет.",
        "尚无信号。",
    ),
    "status": ("Status", "Status", "Состояние", "状态"),
    "ready": ("ready", "bereit", "готов", "就绪"),
    "not_ready": ("not ready", "nicht bereit", "не готов", "未就绪"),
    "silent": ("silent", "stumm", "молчит", "无响应"),
    "behind": (
        "{count} candles behind",
        "{count} Kerzen im Rückstand",
        "отставание: {count} свечей",
        "落后 {count} 根K线",
    ),
    "all_ready": (
        "All services are ready.",
        "Alle Dienste sind bereit.",
        "Все службы готовы.",
        "所有服务就绪。",
    ),
    "trading": ("Trading", "Handel", "Торговля", "交易"),
    "mode": ("mode", "Modus", "режим", "模式"),
    "position": ("Position", "Position", "Позиция", "持仓"),
    "no_position": ("no position", "keine Position", "нет позиции", "无持仓"),
    "entry": ("entry", "Einstieg", "вход", "开仓价"),
    "stop": ("stop", "Stopp", "стоп", "止损"),
    "target": ("target", "Ziel", "цель", "止盈"),
    "balance": ("Balance", "Guthaben", "Баланс", "余额"),
    "free": ("free", "frei", "свободно", "可用"),
    "locked": ("locked", "gebunden", "заблокировано", "冻结"),
    "profit": ("Profit", "Gewinn", "Прибыль", "盈利"),
    "realised": ("realised", "realisiert", "реализованная", "已实现"),
    "unrealised": ("unrealised", "unrealisiert", "нереализованная", "未实现"),
    "fees": ("fees", "Gebühren", "комиссии", "手续费"),
    "days": ("{days} days", "{days} Tage", "{days} дн.", "{days} 天"),
    "trades": ("Trades", "Geschäfte", "Сделки", "成交"),
    "no_trades": (
        "No trades yet.",
        "Noch keine Geschäfte.",
        "Сделок пока нет.",
        "尚无成交。",
    ),
    "won": ("won", "gewonnen", "прибыльных", "盈利笔数"),
    "lost": ("lost", "verloren", "убыточных", "亏损笔数"),
    "best": ("best", "bestes", "лучшая", "最好"),
    "worst": ("worst", "schlechtestes", "худшая", "最差"),
    "since": ("since {time}", "seit {time}", "с {time}", "自 {time}"),
    "no_trader": (
        "The trader does not answer.",
        "Der Händler antwortet nicht.",
        "Трейдер не отвечает.",
        "交易服务无响应。",
    ),
    "no_balances": (
        "The trader has told no balances: it has just begun, or only observes.",
        "Der Händler hat kein Guthaben gemeldet: er hat gerade begonnen oder beobachtet nur.",
        "Трейдер не сообщил баланс: он только начал или лишь наблюдает.",
        "交易服务尚未报告余额：刚刚启动，或仅观察。",
    ),
    "model": ("Model", "Modell", "Модель", "模型"),
    "release": ("release", "Stand", "версия", "版本"),
    "no_release": (
        "No release: the predictor has no models.",
        "Kein Stand: der Prediktor hat keine Modelle.",
        "Нет версии: у предиктора нет моделей.",
        "没有版本：预测服务没有模型。",
    ),
    "trained": ("trained on", "trainiert auf", "обучено на", "训练区间"),
    "data": ("Data", "Daten", "Данные", "数据"),
    "candles": ("candles", "Kerzen", "свечи", "K线"),
    "gaps": ("gaps", "Lücken", "пропуски", "缺口"),
    "newest": ("newest", "neueste", "последняя", "最新"),
    "latency": ("Latency", "Verzögerung", "Задержка", "延迟"),
    "latency_of": (
        "closed candle received to {stage}",
        "Empfang der Kerze bis {stage}",
        "от получения свечи до {stage}",
        "收到K线到 {stage}",
    ),
    "health": ("Health", "Zustand", "Здоровье", "健康"),
    "muted": (
        "Scores are muted until {time}.",
        "Scores sind stumm bis {time}.",
        "Оценки отключены до {time}.",
        "评分消息静音至 {time}。",
    ),
    "unmuted": (
        "Scores are told again.",
        "Scores werden wieder gemeldet.",
        "Оценки снова приходят.",
        "评分消息已恢复。",
    ),
    "threshold": (
        "Scores are told from {threshold} steps of 0.05 on ({score}).",
        "Scores werden ab {threshold} Schritten von 0,05 gemeldet ({score}).",
        "Оценки приходят от {threshold} шагов по 0,05 ({score}).",
        "评分达到 {threshold} 个 0.05 步长（{score}）时通知。",
    ),
    "threshold_bands": (
        "notifier.bands decides which scores are told; there is no threshold here.",
        "notifier.bands bestimmt, welche Scores gemeldet werden; hier gilt keine Schwelle.",
        "Какие оценки присылать, решает notifier.bands; порога здесь нет.",
        "由 notifier.bands 决定通知哪些评分；此处没有阈值。",
    ),
    "threshold_usage": (
        "/threshold N: from which step of 0.05 on scores are told, 0 to 20.",
        "/threshold N: ab welchem Schritt von 0,05 Scores gemeldet werden, 0 bis 20.",
        "/threshold N: с какого шага по 0,05 присылать оценки, от 0 до 20.",
        "/threshold N：从第几个 0.05 步长开始通知，0 到 20。",
    ),
    "chart_usage": (
        "/chart [hours], 1 to 168.",
        "/chart [Stunden], 1 bis 168.",
        "/chart [часы], от 1 до 168.",
        "/chart [小时]，1 到 168。",
    ),
    "profit_usage": (
        "/profit [days], 1 to 365.",
        "/profit [Tage], 1 bis 365.",
        "/profit [дни], от 1 до 365.",
        "/profit [天]，1 到 365。",
    ),
    "mute_usage": (
        "/mute [minutes], 1 to 10080; /mute 0 ends it.",
        "/mute [Minuten], 1 bis 10080; /mute 0 beendet es.",
        "/mute [минуты], от 1 до 10080; /mute 0 отменяет.",
        "/mute [分钟]，1 到 10080；/mute 0 取消。",
    ),
    "no_chart": (
        "No picture: {reason}",
        "Kein Bild: {reason}",
        "Нет картинки: {reason}",
        "无法生成图片：{reason}",
    ),
    "no_candles": (
        "no candles on the bus",
        "keine Kerzen auf dem Bus",
        "нет свечей на шине",
        "总线上没有K线",
    ),
    "no_why": (
        "Cannot explain it: {reason}",
        "Keine Erklärung: {reason}",
        "Не могу объяснить: {reason}",
        "无法解释：{reason}",
    ),
    "why": ("Why", "Warum", "Почему", "为什么"),
    "same_bits": (
        "Computed again from the candles: the same bits.",
        "Neu aus den Kerzen berechnet: dieselben Bits.",
        "Пересчитано по свечам: те же биты.",
        "用K线重新计算：逐位一致。",
    ),
    "other_bits": (
        "Computed again from the candles: NOT the same bits: {reason}",
        "Neu aus den Kerzen berechnet: NICHT dieselben Bits: {reason}",
        "Пересчитано по свечам: биты НЕ совпали: {reason}",
        "用K线重新计算：不一致：{reason}",
    ),
    "code": (
        "To {command}, send /{command} {code} within {seconds} s.",
        "Für {command}: /{command} {code} in {seconds} s senden.",
        "Чтобы выполнить {command}, отправьте /{command} {code} в течение {seconds} с.",
        "要执行 {command}，请在 {seconds} 秒内发送 /{command} {code}。",
    ),
    "bad_code": (
        "That code is not valid (any more).",
        "Dieser Code gilt nicht (mehr).",
        "Этот код недействителен.",
        "该验证码无效或已过期。",
    ),
    "halted": (
        "🛑 HALT: no order is sent until /resume.",
        "🛑 HALT: keine Order mehr bis /resume.",
        "🛑 HALT: заявки не отправляются до /resume.",
        "🛑 已停止：/resume 之前不再下单。",
    ),
    "paused": (
        "⏸ REDUCE ONLY: no new positions until /resume.",
        "⏸ REDUCE ONLY: keine neuen Positionen bis /resume.",
        "⏸ REDUCE ONLY: новых позиций не будет до /resume.",
        "⏸ 仅减仓：/resume 之前不开新仓。",
    ),
    "resumed": (
        "▶️ Trading goes on.",
        "▶️ Der Handel geht weiter.",
        "▶️ Торговля продолжается.",
        "▶️ 恢复交易。",
    ),
    "flattening": (
        "⏏️ FLATTEN: everything is sold, then nothing is bought until /resume.",
        "⏏️ FLATTEN: alles wird verkauft, dann nichts gekauft bis /resume.",
        "⏏️ FLATTEN: всё продаётся, затем покупок нет до /resume.",
        "⏏️ 平仓：卖出全部持仓，/resume 之前不再买入。",
    ),
    "obeyed": (
        "The trader has confirmed it.",
        "Der Händler hat es bestätigt.",
        "Трейдер подтвердил.",
        "交易服务已确认。",
    ),
    "no_trader_obeys": (
        "No trader is there now; the next one obeys it before anything else.",
        "Jetzt ist kein Händler da; der nächste befolgt es vor allem anderen.",
        "Трейдера сейчас нет; следующий выполнит это прежде всего.",
        "目前没有交易服务；下一个启动时会首先执行。",
    ),
    "not_obeyed": (
        "⚠️ The trader has NOT confirmed it; it says {state}. See its log.",
        "⚠️ Der Händler hat es NICHT bestätigt; er sagt {state}. Siehe sein Protokoll.",
        "⚠️ Трейдер НЕ подтвердил; он сообщает {state}. Смотрите его журнал.",
        "⚠️ 交易服务尚未确认；当前状态 {state}。请查看其日志。",
    ),
    "unknown_command": (
        "I do not know that. /help lists what I know.",
        "Das kenne ich nicht. /help zeigt, was ich kenne.",
        "Не знаю такой команды. Список: /help.",
        "未知命令。/help 查看全部命令。",
    ),
    "failed": (
        "That did not work: {reason}",
        "Das ging nicht: {reason}",
        "Не получилось: {reason}",
        "操作失败：{reason}",
    ),
    "today": ("The day", "Der Tag", "День", "今日"),
    # the commands, for Telegram's own menu and /help
    "help_status": (
        "services, score and position at a glance",
        "Dienste, Score und Position auf einen Blick",
        "службы, оценка и позиция одним взглядом",
        "服务、评分与持仓概览",
    ),
    "help_score": ("the newest score", "der neueste Score", "последняя оценка", "最新评分"),
    "help_why": (
        "why that score: /why [signal id]",
        "warum dieser Score: /why [Signal]",
        "почему такая оценка: /why [сигнал]",
        "为何是这个评分：/why [信号]",
    ),
    "help_chart": (
        "candles and scores: /chart [hours]",
        "Kerzen und Scores: /chart [Stunden]",
        "свечи и оценки: /chart [часы]",
        "K线与评分：/chart [小时]",
    ),
    "help_position": ("what is held", "was gehalten wird", "что в позиции", "当前持仓"),
    "help_balance": ("the account", "das Konto", "счёт", "账户余额"),
    "help_profit": (
        "profit after fees: /profit [days]",
        "Gewinn nach Gebühren: /profit [Tage]",
        "прибыль после комиссий: /profit [дни]",
        "扣费后盈利：/profit [天]",
    ),
    "help_trades": ("the last trades", "die letzten Geschäfte", "последние сделки", "最近成交"),
    "help_performance": (
        "trades won and lost",
        "gewonnene und verlorene Geschäfte",
        "прибыльные и убыточные сделки",
        "交易表现",
    ),
    "help_model": (
        "the release that scores",
        "der Stand, der bewertet",
        "действующая версия моделей",
        "当前模型版本",
    ),
    "help_data": (
        "candles, gaps, repairs",
        "Kerzen, Lücken, Reparaturen",
        "свечи, пропуски, ремонт",
        "K线、缺口与修复",
    ),
    "help_latency": (
        "how fast it is",
        "wie schnell es ist",
        "насколько быстро",
        "处理延迟",
    ),
    "help_health": ("every service", "jeder Dienst", "каждая служба", "各服务状态"),
    "help_mute": (
        "no scores for a while: /mute [minutes]",
        "eine Weile keine Scores: /mute [Minuten]",
        "временно без оценок: /mute [минуты]",
        "暂停评分消息：/mute [分钟]",
    ),
    "help_threshold": (
        "from which score on: /threshold N",
        "ab welchem Score: /threshold N",
        "с какой оценки: /threshold N",
        "通知阈值：/threshold N",
    ),
    "help_pause": (
        "no new positions",
        "keine neuen Positionen",
        "без новых позиций",
        "不开新仓",
    ),
    "help_resume": ("trade again", "wieder handeln", "продолжить торговлю", "恢复交易"),
    "help_halt": ("send no more orders", "keine Orders mehr", "не отправлять заявки", "停止下单"),
    "help_flatten": (
        "sell everything, then buy nothing",
        "alles verkaufen, dann nichts kaufen",
        "продать всё и больше не покупать",
        "卖出全部，之后不买入",
    ),
    "help_help": ("what I know", "was ich kenne", "что я умею", "命令列表"),
}


def say(phrase: str, language: str, **values: object) -> str:
    """A phrase in a language; English where the language is none of ours.

    values: what its `{names}` stand for.
    """
    column = LANGUAGES.index(language) if language in LANGUAGES else 0
    return _TABLE[phrase][column].format(**values)


def names_in(phrase: str) -> list[set[str]]:
    """The `{names}` of a phrase, per language: all must be equal."""
    return [
        {name for _, name, _, _ in string.Formatter().parse(text) if name}
        for text in _TABLE[phrase]
    ]


PHRASES = tuple(_TABLE)
